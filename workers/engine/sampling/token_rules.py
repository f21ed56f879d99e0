"""Tokens that a request forbids: all but its allowed ones, those that complete a bad word, and too early an end.

A rule that would leave no token is skipped at that position. So a grammar, which is applied first, always wins:
where it allows only the end, the answer ends.

Reference: vLLM, `vllm/v1/sample/ops/bad_words.py` and `vllm/v1/sample/logits_processor/builtin.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from shared.protocol import SamplingParams


class TokenRules:
    """Rules of one request, shared by its choices: they depend on the tokens alone.

    Args:
        params: `allowed_token_ids` and `min_tokens` count.
        bad_words: token sequences that the output must not contain, each of at least one token.
        ends: tokens that end the output; forbidden as long as it has fewer than `min_tokens`.
        vocab_size: size of the model's logits.
        device: where the logits are.
    """

    def __init__(
        self,
        params: SamplingParams,
        bad_words: Collection[tuple[int, ...]],
        ends: Collection[int],
        *,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._device = device
        self._outside: Tensor | None = None
        if params.allowed_token_ids:
            outside = torch.ones(vocab_size, dtype=torch.bool)
            outside[list(params.allowed_token_ids)] = False
            self._outside = outside.nonzero()[:, 0].to(device)
        self._bad_tokens = self._ids({word[0] for word in bad_words if len(word) == 1})
        self._endings: dict[int, list[tuple[list[int], int]]] = {}  # of bad words, by the last token but one
        for *before, last in bad_words:
            if before:
                self._endings.setdefault(before[-1], []).append((before, last))
        self._ends = self._ids([token for token in ends if token < vocab_size])  # a checkpoint may name others
        self._min_tokens = params.min_tokens

    def apply(self, row: Tensor, tokens: list[int], num_prompt_tokens: int) -> None:
        """Forbid tokens; see `LogitsRules`. Only the output can begin a bad word."""
        for forbidden in self._forbidden(tokens, len(tokens) - num_prompt_tokens):
            left = row.index_fill(0, forbidden, -torch.inf)
            row.copy_(torch.where(left.max() > -torch.inf, left, row))

    def _forbidden(self, tokens: list[int], num_output: int) -> Iterator[Tensor]:
        """Yield the token ids that each rule forbids at the next position."""
        if self._outside is not None:
            yield self._outside
        completing = {
            last
            for before, last in self._endings.get(tokens[-1], ())
            if len(before) <= num_output and tokens[-len(before) :] == before
        }
        if completing or len(self._bad_tokens):
            yield torch.cat([self._bad_tokens, self._ids(completing)]) if completing else self._bad_tokens
        if num_output < self._min_tokens:
            yield self._ends

    def _ids(self, ids: Collection[int]) -> Tensor:
        return torch.tensor(sorted(ids), dtype=torch.int64, device=self._device)
