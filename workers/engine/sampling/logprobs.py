"""Log-probabilities of drawn tokens and of the most likely ones, for the rows that ask for them.

They are the model's own: log-softmax of the logits before temperature, penalties and grammars, as OpenAI and vLLM
define them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from shared.protocol import TokenLogprobs
from workers.engine.sequence import Sequence

MIN_LOGPROB = -9999.0  # in place of minus infinity, which JSON cannot express; the value that OpenAI uses


class StepLogprobs:
    """Log-probabilities of one step. Construct it before sampling, which changes logits in place.

    Args:
        logits: [R, vocab] float32, one row per sequence.
        token_bytes: returns the bytes of a token id; `first` says that the token begins its text.
    """

    def __init__(self, logits: Tensor, sequences: list[Sequence], token_bytes: Callable[..., bytes]) -> None:
        rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        self._tops = {row: sequences[row].params.logprobs or 0 for row in rows}
        self._index = {row: index for index, row in enumerate(rows)}
        with torch.inference_mode():
            self._values = logits[rows].log_softmax(-1).clamp_(min=MIN_LOGPROB) if rows else logits[:0]
        self._sequences = sequences
        self._token_bytes = token_bytes

    def for_token(self, row: int, token_id: int) -> TokenLogprobs | None:
        """Return the log-probabilities for the token drawn from `row`, if its request asks for them."""
        if row not in self._index:
            return None
        values, count = self._values[self._index[row]], self._tops[row]
        top: list[tuple[int, float]] = []
        if count:
            highest, ids = values.topk(min(count, len(values)))
            top = list(zip(ids.tolist(), highest.tolist(), strict=True))
        token_bytes = partial(self._token_bytes, first=self._sequences[row].num_output_tokens == 0)
        return spell(token_id, values[token_id].item(), top, token_bytes)


def spell(
    token_id: int,
    logprob: float,
    top: Iterable[tuple[int, float]],
    token_bytes: Callable[[int], bytes],
    rank: int = 0,
) -> TokenLogprobs:
    """Return the log-probabilities of a token and of the most likely ones, with the tokens' texts."""
    parts: dict[int, bytes] = {}

    def piece(index: int) -> str:
        data = token_bytes(index)
        try:
            return data.decode()
        except UnicodeDecodeError:
            parts[index] = data
            return data.decode(errors="replace")

    return TokenLogprobs(logprob, tuple((i, value, piece(i)) for i, value in top), piece(token_id), parts, rank)
