"""Options that are numbers: what is none is refused by all of them."""

import click
import pytest

from batcher.cli import cli
from batcher.cli.options import Number


def numbers() -> list[click.Parameter]:
    """The options of all commands that take a number that need not be whole."""
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in cli.list_commands(context)]
    params = [param for command in commands if command is not None for param in command.params]
    return [param for param in params if isinstance(param.type, click.types.FloatParamType)]


def test_there_are_such_options() -> None:
    assert {"--price-per-hour", "--seconds", "--temperature", "--row-timeout"} <= {each.opts[0] for each in numbers()}


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_no_option_takes_what_is_no_finite_number(text: str) -> None:
    for param in numbers():
        with pytest.raises(click.BadParameter):
            param.type.convert(text, param, None)


def test_number_in_its_range_is_taken() -> None:
    assert Number(min=0, max=2).convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter, match="is not in the range"):
        Number(min=0, max=2).convert("3", None, None)
