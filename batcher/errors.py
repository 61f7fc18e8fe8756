"""The tree of errors. Each class says whether trying again can help and which exit code the CLI gives it.

A message names the thing, the value and the remedy, because the CLI prints it as it stands, without a traceback.
"""


class BatcherError(Exception):
    """Whatever Batcher raises on purpose. Anything else that escapes is a bug."""

    #: Whether the same call could succeed later with nothing changed by the user.
    is_retriable = False
    #: Exit code of the CLI: 2 bad usage or input, 3 the job could not finish.
    exit_code = 3


class InputError(BatcherError):
    """The user's command or files can't be used as they are."""

    exit_code = 2


class MissingPackageError(InputError, ImportError):
    """What a command needs is not installed here, or can't be loaded."""


class RepeatedIdError(InputError):
    """Two rows of an input have the same custom_id. `number` is the line, or row, of the second, from 1."""

    def __init__(self, message: str, *, number: int) -> None:
        super().__init__(message)
        self.number = number


class InvalidRowError(InputError):
    """One input row is not a valid request. It becomes an error row, or refuses the file under `--strict`.

    `param` is the field that is wrong, None where it is the row as a whole; `kind` says how: it is `missing`, has a
    wrong `value`, or what else. Rows that share both have the same mistake, whatever their values are.
    """

    def __init__(self, message: str, *, param: str | None = None, kind: str = "value") -> None:
        super().__init__(message)
        self.param = param
        self.kind = kind


class InvalidBodyError(InputError):
    """The body of an API request is not a valid request. The message begins with the field that is wrong.

    `param` is that field, None where it is the body as a whole; `code` is the API's error code, if it has one.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class JobError(BatcherError):
    """A job directory is missing, damaged or in the wrong state for the command."""

    exit_code = 2


class JobBusyError(JobError):
    """Another command is changing the job at this moment."""

    is_retriable = True


class JobCancelledError(JobError):
    """The job was cancelled while it was being worked on."""

    exit_code = 3


class JobPausedError(JobError):
    """The job was paused while workers of this machine worked on it."""

    exit_code = 3


class ShardGivenUpError(JobError):
    """A shard failed or crashed so often, no row being to blame, that it waits for a user's `resume`."""

    # So that saying it does not count as another failure of the shard.
    is_retriable = True
    exit_code = 3


class StorageError(BatcherError):
    """A durable read or write failed: disk full, permission, a file system without hard links."""

    is_retriable = True


class CorruptFileError(StorageError):
    """A file of a job directory is torn or fails its checksums."""

    is_retriable = False


class BrokerError(BatcherError):
    """The Redis-protocol broker cannot be started or reached."""

    is_retriable = True


class BrokerUrlError(BrokerError):
    """What was given as the broker's URL is none that Batcher takes."""

    is_retriable = False
    exit_code = 2


class BrokerBusyError(BrokerError):
    """Another process of this machine runs the embedded broker of the same folder."""


class ModelError(BatcherError):
    """A model can't be found or loaded. No row is to blame."""

    exit_code = 2


class EngineError(BatcherError):
    """llama.cpp failed while decoding. The engine that raised it must be replaced."""

    is_retriable = True


def first_line(exc: Exception) -> str:
    """What an exception of a library says, without what follows its first line."""
    return str(exc).strip().splitlines()[0].rstrip(".") if str(exc).strip() else type(exc).__name__
