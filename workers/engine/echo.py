"""Prompt of a request that asks for it, with the log-probabilities of its tokens if it asks for them too."""

from __future__ import annotations

from collections.abc import Callable

from shared.protocol import SamplingParams, Token, TokenLogprobs


def scored_tops(params: SamplingParams) -> int | None:
    """Return how many of the most likely tokens to report with each prompt token; None if it is not scored."""
    asked = (params.prompt_logprobs, params.logprobs if params.echo else None)
    return max((each for each in asked if each is not None), default=None)


class Echo:
    """Prompt tokens of one request, and their log-probabilities computed so far.

    Args:
        prompt: token ids.
        top: number of most likely tokens to report with each token; None if the prompt is not scored. The first
            token is never scored: nothing precedes it.
        ranked: report the rank of each token.
        with_text: return the text of each token too.
    """

    def __init__(self, prompt: list[int], *, top: int | None, ranked: bool, with_text: bool) -> None:
        self.top = top
        self.ranked = ranked
        self._with_text = with_text
        self._prompt = prompt
        self._scores: list[TokenLogprobs | None] = [None] * len(prompt)

    @classmethod
    def from_params(cls, prompt: list[int], params: SamplingParams) -> Echo | None:
        """Return the echo that a request asks for, if any."""
        top = scored_tops(params)
        if top is None and not params.echo and not params.return_token_ids:
            return None
        return cls(prompt, top=top, ranked=params.prompt_logprobs is not None, with_text=params.echo)

    @property
    def scored(self) -> bool:
        return self.top is not None

    def scored_positions(self, start: int, count: int) -> range:
        """Return the positions in `start` … `start + count - 1` whose logits score the next prompt token."""
        return range(start, min(start + count, len(self._prompt) - 1)) if self.scored else range(0)

    def target_token(self, position: int) -> int:
        """Return the id of the prompt token that the logits of `position` score."""
        return self._prompt[position + 1]

    def record(self, position: int, score: TokenLogprobs) -> None:
        """Store the score computed from the logits of `position`."""
        self._scores[position + 1] = score

    def tokens(self, token_texts: Callable[[list[int]], list[str]], choice: int) -> tuple[Token, ...]:
        """Return the prompt's tokens; `token_texts` maps token ids to the text that each adds."""
        texts = token_texts(self._prompt) if self._with_text else [""] * len(self._prompt)
        scored = zip(self._prompt, texts, self._scores, strict=True)
        return tuple(Token(choice, token_id, text, None, score) for token_id, text, score in scored)
