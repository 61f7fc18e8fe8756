"""Which of some labels a prompt calls for: the log-probability of each, by the model's own logits. Nothing is drawn.

A label's tokens form a path from the prompt on, and labels that begin alike share its beginning. At each place where a
label goes on, the logits say how likely its next token is, so every place is computed once, with the cells of what lies
before it: a prompt and five labels of one token take no more than the prompt. One sequence goes to the places depth
first, in its own slot: all on one path are computed at once, those of the first along with the prompt. Plain numpy, no
llama.cpp.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers.engines.llama.sampling.logits import Floats
from workers.engines.llama.sampling.logprobs import log_sum_exp
from workers.engines.llama.sampling.transcript import Tell

if TYPE_CHECKING:
    from workers.engines.llama.vocabulary import Vocabulary

#: Token ids behind the prompt.
Path = tuple[int, ...]

#: Texts to put before a label, so that its tokens are those that it has behind other text: some vocabularies put a
#: blank before what they take for a beginning, or join what stands side by side.
_BEFORE = ("", "\x02", "\n", ".", "0")


class LabelError(Exception):
    """Why a label can't be scored."""


def label_tokens(label: str, vocabulary: "Vocabulary") -> Path:
    """The tokens of a label as it stands behind other text. Raises LabelError where none spell it."""
    wanted = label.encode()
    for before in _BEFORE:
        tokens = vocabulary.tokenize(before + label, adds_bos=False).tolist()
        lengths = itertools.accumulate(len(vocabulary.piece(token)) for token in reversed(tokens))
        number = 1 + sum(1 for _ in itertools.takewhile(lambda length: length < len(wanted), lengths))
        if b"".join(map(vocabulary.piece, tokens[-number:])) == wanted:
            return tuple(tokens[-number:])
    raise LabelError(f"the model's vocabulary can't spell {label!r}; leave it out, or ask for no scores")


class Scoring:
    """How far one prompt's labels are scored. Mutable; for the engine's thread. `labels` are the tokens of each.

    `tell` wants to hear of the one that is chosen.
    """

    def __init__(self, labels: Sequence[Path], *, tell: Tell | None = None) -> None:
        assert all(labels), "a label without tokens can't be scored"
        self.tell = tell
        self.num_tokens = list(map(len, labels))
        #: Of each label, the sum of what its tokens have so far.
        self.logprobs = [0.0] * len(labels)
        going_on: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for number, tokens in enumerate(labels):
            for length, token in enumerate(tokens):
                going_on[tokens[:length]].append((number, token))
        # The next is the last. Each lies behind the one before it, or behind one of those behind which that lies.
        self._places = sorted(going_on.items(), reverse=True)
        #: Tokens of the longest path to a place.
        self.longest = max(map(len, going_on))

    @property
    def num_wanted(self) -> int:
        """How many places lie on one path, whose logits are wanted next."""
        pairs = itertools.pairwise(place for place, _ in reversed(self._places))
        return 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[1][: len(pair[0])] == pair[0], pairs))

    @property
    def path(self) -> Path:
        """The last of them: the others are its beginnings, each a token shorter."""
        return self._places[-self.num_wanted][0]

    @property
    def is_done(self) -> bool:
        return not self._places

    @property
    def best(self) -> int:
        """Which label is the likeliest, of equal ones the first."""
        return self.logprobs.index(max(self.logprobs))

    def note(self, logits: Floats) -> None:
        """Take the logits at the next place, shape (vocabulary size,). Raises NotANumberError; it is the next still."""
        log_total = log_sum_exp(logits)
        _, nexts = self._places.pop()
        for number, token in nexts:
            self.logprobs[number] += float(logits[token]) - log_total
