"""Lets this process die, as far as a test can, between two steps of its work."""

from collections.abc import Callable, Sequence

import pytest


class ProcessDiedError(Exception):
    """The process dies here."""


def die_before(patch: pytest.MonkeyPatch, number: int | None, steps: Sequence[tuple[object, str]]) -> Callable[[], int]:
    """Die before the step of that number, counted from 0; None: go on to the end. Returns how many steps there were.

    `steps` are functions, each by the module or class that has it and its name.
    """
    num_done = 0

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            nonlocal num_done
            if num_done == number:
                raise ProcessDiedError
            num_done += 1
            return function(*args, **kwargs)

        return step

    for owner, name in steps:
        patch.setattr(owner, name, counting(getattr(owner, name)))
    return lambda: num_done
