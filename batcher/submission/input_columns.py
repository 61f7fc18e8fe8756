"""The columns of an input, in its order, and where in the results their values are: for who has them back.

Of tables all columns are known. Lines of JSON are parsed in one go, in which the order of their keys is lost: the id
and the prompt come first, then what goes along, as it appeared.
"""

from collections.abc import Iterable, Mapping

from batcher.jobdir.manifest import InputColumn
from batcher.submission.chats import MESSAGES


class InputColumns:
    """Learns the names as rows go by. Mutable; one for each input.

    `prompt_column` None: a template makes the prompts. `makes_chats`: of prompts.
    """

    def __init__(self, *, id_column: str, prompt_column: str | None, makes_chats: bool) -> None:
        self._id_column = id_column
        self._prompt_column = prompt_column
        self._makes_chats = makes_chats
        self._seen: dict[str, None] = {}

    def see(self, names: Iterable[str]) -> None:
        """Rows have these columns."""
        self._seen.update(dict.fromkeys(names))

    def see_prompt(self, column: str | None) -> None:
        """A line has its prompt, or its messages, in this column."""
        if column is not None:
            self._seen[column] = None

    def found(self, carried: Mapping[str, str], *, has_ids: bool) -> tuple[InputColumn, ...]:
        """The columns so far. `carried` are those that go along to the results, with their names there."""
        first = [self._id_column] if has_ids and self._id_column not in self._seen else []
        return tuple(self._column(name, carried) for name in dict.fromkeys([*first, *self._seen, *carried]))

    def _column(self, name: str, carried: Mapping[str, str]) -> InputColumn:
        if name in carried:
            return InputColumn(name, carried[name])
        if name == self._id_column:
            return InputColumn(name, "custom_id")
        if name in (self._prompt_column, MESSAGES):
            return InputColumn(name, "prompt", is_message=self._makes_chats)
        return InputColumn(name, None)
