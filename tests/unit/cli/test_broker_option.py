"""Where a broker's URL may come from: the command line, the environment, a file; a password not from the first."""

from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from batcher.cli.options import broker_option, json_option
from batcher.errors import InputError

SECRET = "redis://:geheim@host:6379/0"


@click.command()
@json_option
@broker_option
def show_command(*, as_json: bool, broker: str | None) -> None:
    """A command with the option."""
    click.echo(f"broker={broker}")


def show(arguments: Sequence[object] = (), **env: str) -> Result:
    # As the CLI has it: errors of ours pass.
    found = CliRunner().invoke(
        show_command,
        [str(argument) for argument in arguments],
        env={"BATCHER_BROKER": "", **env},
        standalone_mode=False,
    )
    if isinstance(found.exception, InputError):
        raise found.exception
    assert found.exception is None, found.exception
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "broker"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def test_url_comes_from_the_command_line_the_environment_or_a_file(file: Path) -> None:
    assert show().stdout == "broker=None\n"
    assert show(["--broker", "redis://host"]).stdout == "broker=redis://host\n"
    assert show(BATCHER_BROKER=SECRET).stdout == f"broker={SECRET}\n"
    assert show(["--broker-file", file]).stdout == f"broker={SECRET}\n"
    assert show(BATCHER_BROKER_FILE=str(file)).stdout == f"broker={SECRET}\n"


@pytest.mark.parametrize(
    "url", [SECRET, "redis://user:geheim@host", "geheim@host:6379", "redis://host?password=geheim"]
)
def test_password_on_the_command_line_is_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(InputError, match=r"BATCHER_BROKER.*--broker-file") as caught:
        show(["--broker", url])

    assert "geheim" not in str(caught.value)


def test_command_line_goes_before_the_environment(file: Path) -> None:
    assert show(["--broker-file", file], BATCHER_BROKER="redis://other").stdout == f"broker={SECRET}\n"
    assert show(["--broker", "redis://h"], BATCHER_BROKER_FILE=str(file)).stdout == "broker=redis://h\n"
    assert show(["--broker", "redis://h"], BATCHER_BROKER_FILE="/none").stdout == "broker=redis://h\n"


def test_url_given_twice_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match="--broker and --broker-file are both given; leave out one"):
        show(["--broker", "redis://h", "--broker-file", file])
    with pytest.raises(InputError, match="BATCHER_BROKER and BATCHER_BROKER_FILE are both given"):
        show(BATCHER_BROKER="redis://h", BATCHER_BROKER_FILE=str(file))


def test_password_that_everyone_can_read_is_warned_of(file: Path) -> None:
    assert show(["--broker-file", file]).stderr == ""

    file.chmod(0o644)

    assert show(["--broker-file", file]).stderr == (
        f"Warning: everyone on this machine can read {file} (mode 644); chmod 600 {file}\n"
    )


def test_file_without_a_password_may_be_read_by_everyone(file: Path) -> None:
    file.write_text("redis://host:6379/0\n")
    file.chmod(0o644)

    assert show(["--broker-file", file]).stderr == ""


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the file: No such file"):
        show(["--broker-file", tmp_path / "none"])
