"""The models among the files of a folder or repository: split files put together, and told apart by quantization."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from batcher.model_files import is_later_split, quantization, split_files

#: In the names of GGUF files that are no language models: projectors, statistics for quantizing, drafters.
_NO_MODELS = re.compile(r"mmproj|imatrix|(?:^|[-_.])(?:mtp|eagle3|dflash|dspark)-", re.IGNORECASE)
#: Unsloth's own mixtures.
_MIXTURE = "UD-"


@dataclass(frozen=True, slots=True)
class Weights:
    """A model among files. `files` are all that it is made of, in order, as they should be; `label` its quantization by
    the custom of file names, in capitals: `Q4_K_M`, `UD-Q4_K_XL`."""

    files: tuple[str, ...]
    label: str | None

    @property
    def first(self) -> str:
        return self.files[0]


def weights_among(files: Iterable[str]) -> list[Weights]:
    """The models among files, whose names are relative and have `/`; of a split model its first file counts."""
    paths = [PurePosixPath(file) for file in sorted(files)]
    firsts = [path for path in paths if path.suffix == ".gguf" and not is_later_split(path)]
    return [
        Weights(tuple(str(part) for part in split_files(path)), _label(path))
        for path in firsts
        if not _NO_MODELS.search(path.name)
    ]


def names_in(repository: str, found: Iterable[Weights]) -> dict[str, Weights]:
    """A name for each: REPOSITORY:LABEL, or REPOSITORY/FILE where several have the label, or none is known."""
    all_of_them = list(found)
    num_with = Counter(each.label for each in all_of_them)
    return {
        f"{repository}:{each.label}" if each.label and num_with[each.label] == 1 else f"{repository}/{each.first}": each
        for each in all_of_them
    }


def _label(path: PurePosixPath) -> str | None:
    """By the file's name, else by that of its folder."""
    return next(
        (label for stem in (path.stem, *(each.name for each in path.parents)) if (label := label_of(stem))), None
    )


def label_of(stem: str) -> str | None:
    """The quantization that a name tells, in capitals; None where it tells none."""
    label = quantization(stem)
    return f"{_MIXTURE}{label}" if label and f"{_MIXTURE}{label}" in stem.upper() else label
