"""Log-probabilities of the tokens that were drawn and of the likeliest, for the rows that ask for them.

They are the model's own: log-softmax of the logits before temperature, penalties and grammars, as OpenAI and vLLM
define them. It knows nothing of how a token was drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared.protocol import TokenLogprobs
from workers.engine.sequence import Sequence

LEAST = -9999.0  # stands for minus infinity, which JSON cannot say; OpenAI's value


class LogProbs:
    """Of one step; made before the sampler, which changes logits in place.

    Args:
        logits: [R, vocab] float32, one row a sequence.
        piece: a token id's text.
    """

    def __init__(self, logits: Tensor, sequences: list[Sequence], piece: Callable[[int], str]) -> None:
        rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        self._tops = {row: sequences[row].params.logprobs or 0 for row in rows}
        self._at = {row: index for index, row in enumerate(rows)}
        with torch.inference_mode():
            self._values = logits[rows].log_softmax(-1).clamp_(min=LEAST) if rows else logits[:0]
        self._piece = piece

    def of(self, row: int, token_id: int) -> TokenLogprobs | None:
        """What row `row` of the logits says of the token that was drawn from it; None where nobody asked."""
        if row not in self._at:
            return None
        values, count = self._values[self._at[row]], self._tops[row]
        top: tuple[tuple[int, float, str], ...] = ()
        if count:
            likeliest, ids = values.topk(min(count, len(values)))
            top = tuple((i, v, self._piece(i)) for i, v in zip(ids.tolist(), likeliest.tolist(), strict=True))
        return TokenLogprobs(values[token_id].item(), top, self._piece(token_id))
