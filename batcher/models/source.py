"""What a source of models is: somebody's place on this machine where GGUF files lie under names."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

#: Takes a line for the user: what is fetched, and why this.
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine.

    `path` is what llama.cpp opens: of a split model the first file. `source` is the key of the source that has it.
    `problem` says why it can't be used, and the remedy.
    """

    name: str
    path: Path
    source: str
    problem: str | None = None


class Source(Protocol):
    """A place with models. It is looked at anew at each call, and nothing in it is changed.

    A place that is not there, or may not be read, has no models.
    """

    @property
    def key(self) -> str:
        """What stands before a name to mean this source only: `ollama` in `ollama:gemma3:27b`."""

    def models(self) -> Iterable[FoundModel]:
        """All that is here, each name once. Lists files and reads small ones, no model."""

    def find(self, name: str) -> FoundModel | None:
        """The model that `name` means here, called as it was asked for or in full; None where there is none."""

    def how_to_remove(self, model: FoundModel) -> str:
        """What removes a model that is not ours to remove, in words for a user."""


@runtime_checkable
class Fetching(Protocol):
    """A source that can also get what is not here."""

    def fetch(self, name: str, *, tell: Tell | None) -> FoundModel:
        """Get the model, which may take hours, and check it; what is here whole is not got again.

        `tell` takes lines for a user; with it, a terminal also gets a bar. Raises ModelError, MissingPackageError.
        """


def find_by_name(source: Source, name: str) -> FoundModel | None:
    """`Source.find` where a name means itself."""
    return next((model for model in source.models() if model.name == name), None)
