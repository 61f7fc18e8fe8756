"""A request as the sequences that an engine decodes, and their results as its choices.

Of each prompt `best_of` sequences are decoded, numbered on over the prompts, each with a seed of its own. Where that is
more than the `n` that are wanted, those with the highest mean log-probability of their tokens are given, as the
documented API has it ("best" is the one with the highest log probability per token).
"""

from collections.abc import Iterator
from dataclasses import replace

from batcher.types import Choice, Request, RowError
from workers.engines.base import SequenceRequest, SequenceResult


def sequence_requests(
    request: Request,
    *,
    position: int,
    job_seed: int,
    timeout_s: float | None,
    is_alone: bool = False,
    is_live: bool = False,
    client: str = "",
) -> Iterator[SequenceRequest]:
    """What the engine is to decode for `request`; their keys are `position` and the number of the sequence."""
    params = request.params
    # Most rows ask for one completion of each prompt, and nothing need be changed for them.
    if params.num_drawn > 1 or params.best_of is not None or params.echo:
        # To choose by them; `Gathering` takes them away again.
        logprobs = 0 if params.logprobs is None and params.num_drawn > params.n else params.logprobs
        params = replace(params, n=1, best_of=None, echo=False, logprobs=logprobs)
    for number in range(request.num_sequences):
        yield SequenceRequest(
            (position, number),
            request.prompts[number // request.params.num_drawn],
            params,
            seed=request.choice_seed(number, job_seed=job_seed),
            timeout_s=timeout_s,
            is_alone=is_alone,
            is_live=is_live,
            client=client,
            is_chat=request.is_chat,
            is_token_ids=request.is_token_ids,
            is_echoing=request.is_echoed_by_engine,
            scores_prompt=request.scores_prompts,
        )


class Gathering:
    """The results of a request as they come, in any order. Mutable."""

    def __init__(self, request: Request) -> None:
        self.error: RowError | None = None
        self._request = request
        self._num_missing = request.num_sequences
        self._found: list[Choice] = []

    def add(self, result: SequenceResult) -> bool:
        """Take a result. Returns whether it was the last."""
        self._num_missing -= 1
        if result.choice is not None:
            self._found.append(result.choice)
        self.error = self.error or result.error
        return not self._num_missing

    def choices(self) -> tuple[Choice, ...]:
        """The choices in order of index, once all results are in; none where one failed.

        A request is answered whole or not at all.
        """
        assert not self._num_missing
        if self.error is not None:
            return ()
        if len(self._found) == 1:
            return (self.finish(self._found[0]),)
        found = sorted(self._found, key=lambda choice: choice.index)
        num_drawn = self._request.params.num_drawn
        drawn = (found[start : start + num_drawn] for start in range(0, len(found), num_drawn))
        best = [choice for group in drawn for choice in self._best(group)]
        return tuple(self.finish(replace(choice, index=index)) for index, choice in enumerate(best))

    def finish(self, choice: Choice) -> Choice:
        """What the caller gets of a choice that is numbered as such: echoed if that was asked for."""
        params = self._request.params
        if params.echo and not self._request.is_echoed_by_engine:
            prompt = self._request.prompts[choice.index // params.n]
            choice = replace(choice, text=prompt + choice.text, num_echoed=len(prompt))
        # Those of `best_of` were taken to choose by.
        return replace(choice, logprobs=None) if params.logprobs is None and choice.logprobs is not None else choice

    def _best(self, drawn: list[Choice]) -> list[Choice]:
        """The likeliest of the completions of one prompt, the likeliest first; as they are where all are wanted."""
        number = self._request.params.n
        return drawn if len(drawn) <= number else sorted(drawn, key=self._mean_logprob, reverse=True)[:number]

    def _mean_logprob(self, choice: Choice) -> float:
        # Of what was generated: the prompt's come first.
        num_echoed = choice.usage.prompt_tokens if self._request.scores_prompts else 0
        values = [token.logprob or 0.0 for token in (choice.logprobs or ())[num_echoed:]]
        return sum(values) / len(values) if values else 0.0
