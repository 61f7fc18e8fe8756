"""Sets the wall clock of processes, by libfaketime."""

import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WallClock:
    """The wall clock of the processes that have `env`; only `CLOCK_REALTIME`, as where an administrator sets it."""

    path: Path

    @property
    def env(self) -> dict[str, str]:
        found = importlib.util.find_spec("libfaketime")
        assert found is not None
        assert found.submodule_search_locations is not None
        (package,) = found.submodule_search_locations
        return {
            "LD_PRELOAD": f"{package}/vendor/libfaketime/src/libfaketime.so.1",
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            # Seconds until a change in the file is seen.
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Times of files are the file system's.
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset: str) -> None:
        """Put it forth or back: `+1d`."""
        self.path.write_text(offset)


def sweep_shared_memory() -> None:
    """Remove what libfaketime shares between a process and its children, and leaves where they were killed."""
    for path in Path("/dev/shm").glob("*faketime_*"):
        with contextlib.suppress(ValueError, FileNotFoundError):
            if not Path(f"/proc/{int(path.name.rpartition('_')[2])}").exists():
                path.unlink()
