"""Faults of a worker's child, chosen by a test and carried to the child in its environment.

This folder goes on PYTHONPATH, so that Python imports `sitecustomize` from it at its start, before any of our code.
The product has no hook for tests.
"""

import os
from pathlib import Path

_FOLDER = Path(__file__).parent


def inject(**faults: object) -> dict[str, str]:
    """The environment that brings these faults about, named as in `sitecustomize`: `inject(segfault_on="POISON")`."""
    path = os.pathsep.join(filter(None, [str(_FOLDER), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, **{f"FAULT_{name.upper()}": str(value) for name, value in faults.items()}}
