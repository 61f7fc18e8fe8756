"""What is wrong with a broker, in words with a remedy."""

import pytest
import redis
from kombu.exceptions import OperationalError
from redis import exceptions

from batcher.broker.client import connect, trouble


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "it is a replica, which takes no"),
        (exceptions.ResponseError("UNBLOCKED force unblock, state changed (master -> replica?)"), "it is a replica"),
        (exceptions.MasterDownError("Link with MASTER is down"), "it is a replica, and its primary is away"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "still loads its data; wait"),
        (exceptions.OutOfMemoryError("command not allowed"), "raise its maxmemory"),
        (exceptions.MovedError("1 127.0.0.1:6380"), "it is a Redis Cluster"),
        (exceptions.AskError("1 127.0.0.1:6380"), "it is a Redis Cluster"),
        (exceptions.ClusterDownError("Hash slot not served"), "it is a Redis Cluster"),
        (exceptions.ClusterCrossSlotError("Keys in request"), "it is a Redis Cluster"),
        (exceptions.AuthenticationError("WRONGPASS"), "wrong or missing password"),
        (exceptions.NoPermissionError("no permissions to run the 'lpush' command"), "docs/operations.md has the ACL"),
        (exceptions.ConnectionError("max number of clients reached"), "raise its maxclients"),
        (exceptions.ConnectionError("Connection refused"), "cannot reach it: Connection refused; start it"),
        (exceptions.ConnectionError("Error 111. Connection refused."), "Connection refused; start it"),
        (exceptions.ResponseError("MISCONF unable to persist to disk"), "it refuses: MISCONF unable to persist"),
        (OSError("No route to host"), "cannot reach it: No route to host"),
    ],
)
def test_each_trouble_has_its_remedy(exc: Exception, text: str) -> None:
    assert text in trouble(exc)


def test_error_of_kombu_is_told_by_its_cause() -> None:
    wrapped = OperationalError("You can't write")
    wrapped.__cause__ = exceptions.ReadOnlyError("You can't write")

    assert trouble(wrapped) == trouble(wrapped.__cause__)


def test_password_that_a_server_repeats_is_left_out() -> None:
    said = trouble(exceptions.ResponseError("unknown user secret"), "redis://:secret@host")

    assert "secret" not in said


def test_server_that_answers_is_connected_to(redis_url: str) -> None:
    client = connect(redis_url)

    assert isinstance(client, redis.Redis)
    client.close()
