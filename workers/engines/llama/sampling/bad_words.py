"""Words that may not be generated, as tokens: what would complete one of them is ruled out.

As in vLLM a word is what its text is tokenized to, without and with a space before it; of several tokens the last is
ruled out where those before it were generated last. Other tokens that spell the same word are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workers.engines.llama.kv_cache import Tokens

#: Characters in all words of a request, whose number is bounded where it comes in: some 0.1 s to tokenize, once.
MAX_BAD_WORD_CHARS = 20_000

_NO_TOKENS: Tokens = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class BadWords:
    """Words by their tokens: `single` has those of one token.

    `longer` has by the last but one of its tokens each other word: the bytes of all but the last token, and the last.
    """

    single: Tokens = field(default_factory=lambda: _NO_TOKENS)
    longer: dict[int, tuple[tuple[bytes, int], ...]] = field(default_factory=dict)

    @property
    def is_any(self) -> bool:
        return bool(len(self.single) or self.longer)

    def ends(self, generated: Tokens) -> Tokens:
        """The tokens that would complete a word after those `generated`."""
        begun = self.longer.get(int(generated[-1])) if len(generated) else None
        if begun is None:
            return self.single
        data = generated.astype(np.int32, copy=False).tobytes()
        found = [last for beginning, last in begun if data.endswith(beginning)]
        return np.append(self.single, np.array(found, np.int32))


NO_BAD_WORDS = BadWords()


def bad_words_of(words: Sequence[str], tokenize: Callable[[str], Tokens]) -> BadWords:
    """The tokens of `words`. Raises ValueError that says why a word can't be ruled out."""
    num_chars = sum(map(len, words))
    if num_chars > MAX_BAD_WORD_CHARS:
        raise ValueError(f"bad_words has {num_chars:,} characters in all; give at most {MAX_BAD_WORD_CHARS:,}")
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = tuple(tokenize(word.lstrip()).tolist()) if word.lstrip() else ()
        if not bare:
            raise ValueError(f"bad_words has {word!r}, which is no token of the model; leave it out")
        found[bare] = None
        found[tuple(tokenize(f" {word.lstrip()}").tolist())] = None
    longer: dict[int, list[tuple[bytes, int]]] = {}
    for tokens in found:
        if len(tokens) > 1:
            longer.setdefault(tokens[-2], []).append((np.array(tokens[:-1], np.int32).tobytes(), tokens[-1]))
    single = np.array([tokens[0] for tokens in found if len(tokens) == 1], np.int32)
    return BadWords(single, {token: tuple(words) for token, words in longer.items()})
