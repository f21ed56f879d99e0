"""Log-probabilities of drawn tokens and of the most likely ones, for the rows that ask for them.

They are the model's own: log-softmax of the logits before temperature, penalties and grammars, as OpenAI and vLLM
define them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared.protocol import TokenLogprobs
from workers.engine.sequence import Sequence

MIN_LOGPROB = -9999.0  # in place of minus infinity, which JSON cannot express; the value that OpenAI uses


class StepLogprobs:
    """Log-probabilities of one step. Construct it before sampling, which changes logits in place.

    Args:
        logits: [R, vocab] float32, one row per sequence.
        token_text: returns the text of a token id.
    """

    def __init__(self, logits: Tensor, sequences: list[Sequence], token_text: Callable[[int], str]) -> None:
        rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        self._tops = {row: sequences[row].params.logprobs or 0 for row in rows}
        self._index = {row: index for index, row in enumerate(rows)}
        with torch.inference_mode():
            self._values = logits[rows].log_softmax(-1).clamp_(min=MIN_LOGPROB) if rows else logits[:0]
        self._token_text = token_text

    def for_token(self, row: int, token_id: int) -> TokenLogprobs | None:
        """Return the log-probabilities for the token drawn from `row`, if its request asks for them."""
        if row not in self._index:
            return None
        values, count = self._values[self._index[row]], self._tops[row]
        top: tuple[tuple[int, float, str], ...] = ()
        if count:
            highest, ids = values.topk(min(count, len(values)))
            top = tuple((i, v, self._token_text(i)) for i, v in zip(ids.tolist(), highest.tolist(), strict=True))
        return TokenLogprobs(values[token_id].item(), top, self._token_text(token_id))
