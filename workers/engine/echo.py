"""The prompt of a request that asks for it back, with the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Callable

from shared.protocol import Token, TokenLogprobs


class Echo:
    """Prompt tokens of one request and the scores collected for them so far.

    Args:
        prompt: token ids.
        scored: whether the request asks for log-probabilities. The first token never has one: nothing precedes it.
    """

    def __init__(self, prompt: list[int], *, scored: bool) -> None:
        self.scored = scored
        self._prompt = prompt
        self._scores: list[TokenLogprobs | None] = [None] * len(prompt)

    def scores_at(self, start: int, count: int) -> range:
        """Return the positions among `start` … `start + count - 1` whose logits score the next prompt token."""
        return range(start, min(start + count, len(self._prompt) - 1)) if self.scored else range(0)

    def target(self, position: int) -> int:
        """Return the id of the prompt token that the logits of `position` score."""
        return self._prompt[position + 1]

    def note(self, position: int, score: TokenLogprobs | None) -> None:
        """Keep the score that the logits of `position` gave."""
        self._scores[position + 1] = score

    def tokens(self, texts: Callable[[list[int]], list[str]], choice: int) -> tuple[Token, ...]:
        """Return the prompt's tokens; `texts` returns the text that each token adds."""
        scored = zip(self._prompt, texts(self._prompt), self._scores, strict=True)
        return tuple(Token(choice, token_id, text, None, score) for token_id, text, score in scored)
