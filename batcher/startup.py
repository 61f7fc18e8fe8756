"""What a process of ours does before its large imports, which are most of the time until it works."""

import gc
import os
import sys
from importlib.abc import MetaPathFinder

#: Objects made, less those freed, between two looks for garbage; Python's own is 700 or 2000. Imports make some hundred
#: thousand and no garbage, and looking for it took a sixth of their time.
_GC_THRESHOLD = 50_000


class _WithoutPandas(MetaPathFinder):
    """Has `import pandas` fail.

    pyarrow imports it, where it is installed, at the first list it is given, to see whether the list is a series of
    it: half a second and 50 MB for nothing that we use.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not imported in processes of Batcher", name=fullname)


def import_all() -> None:
    """Let everything be imported again. For code that is not ours."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WithoutPandas)]


def start_fast() -> None:
    """Make the imports of this process take less. For the first line of an entry point, not of a library."""
    gc.set_threshold(_GC_THRESHOLD)
    sys.meta_path.insert(0, _WithoutPandas())


def start_in_utf8() -> None:
    """Start this process once more, in Python's UTF-8 mode, where the locale has it take all text for ASCII.

    Most systems that have such a locale are UTF-8 otherwise, and Python chooses that mode itself, unless it is told not
    to (`PYTHONUTF8=0`). Else no argument could hold a character of any other alphabet, and no file be opened whose name
    does. For the first line of an entry point.
    """
    if sys.getfilesystemencoding() != "ascii":
        return
    # For processes that this one starts.
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606
