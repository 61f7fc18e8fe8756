"""What a program needs around it that tries Batcher for minutes: no options of the shell's, and a folder of its own."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def forget_options() -> None:
    """Take the options of all commands out of the environment, so that only those count that the program gives."""
    for name in [name for name in os.environ if name.startswith("BATCHER_")]:
        del os.environ[name]


@contextlib.contextmanager
def own_folder(keep: Path | None, *, name: str) -> Iterator[Path]:
    """A folder for everything: `keep`, which is made and stays, else one that is gone afterwards."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix=f"batcher-{name}-") as folder:
        yield Path(folder)
