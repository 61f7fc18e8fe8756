"""The prompt in front of an answer: its text, and the log-probabilities of its tokens, as the request wants them."""

from collections.abc import Iterator

from batcher.types import TokenLogprob
from workers.engines.llama.sampling.transcript import Echo
from workers.engines.llama.scores import ScoreTable
from workers.engines.llama.sequence import Sequence
from workers.engines.llama.vocabulary import Vocabulary


def echo_of(sequence: Sequence, vocabulary: Vocabulary, scores: ScoreTable) -> Echo:
    """The echo of a running sequence whose prompt is computed, and scored if that was asked for."""
    request = sequence.request
    pieces = _pieces(sequence, vocabulary)
    text = b"".join(pieces).decode("utf-8", errors="replace") if request.is_token_ids else request.prompt
    if not request.scores_prompt:
        return Echo(text, None)
    first = TokenLogprob(pieces[0], None)
    return Echo(text, (first, *_scored(sequence, pieces, vocabulary, scores)))


def _pieces(sequence: Sequence, vocabulary: Vocabulary) -> list[bytes]:
    """What each token of the prompt stands for in its text, special tokens by their names."""
    pieces = [vocabulary.written(token) for token in sequence.prompt.tolist()]
    if sequence.request.is_token_ids:
        return pieces
    text = sequence.request.prompt.encode("utf-8", errors="surrogatepass")
    excess = sum(map(len, pieces)) - len(text)
    if excess > 0 and b"".join(pieces).endswith(text):
        # A BOS, or a space that a tokenizer puts in front: no part of the text.
        for at, piece in enumerate(pieces):
            pieces[at] = piece[excess:]
            excess -= min(excess, len(piece))
            if not excess:
                break
    return pieces


def _scored(
    sequence: Sequence, pieces: list[bytes], vocabulary: Vocabulary, scores: ScoreTable
) -> Iterator[TokenLogprob]:
    """All tokens but the first, before which there is nothing to go by."""
    slot, count, num_top = sequence.slot, len(pieces) - 1, sequence.request.params.logprobs or 0
    written = vocabulary.written
    for piece, logprob, tokens, logprobs in zip(
        pieces[1:],
        scores.logprobs[slot, :count].tolist(),
        scores.top_tokens[slot, :count, :num_top].tolist(),
        scores.top_logprobs[slot, :count, :num_top].tolist(),
        strict=True,
    ):
        top = tuple((written(token), value) for token, value in zip(tokens, logprobs, strict=True) if token >= 0)
        yield TokenLogprob(piece, logprob, top)
