"""Log-probabilities of drawn tokens and of the most likely ones, for the rows that ask for them.

They are the model's own: log-softmax of the logits before temperature, penalties and grammars, as OpenAI and vLLM
define them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from shared.protocol import TokenLogprobs
from workers.engine.sampling.rows import Rows
from workers.engine.sampling.torch_rows import TORCH_ROWS
from workers.engine.sequence import Sequence

MIN_LOGPROB = -9999.0  # in place of minus infinity, which JSON cannot express; the value that OpenAI uses


class StepLogprobs:
    """Log-probabilities of one step. Construct it before sampling, which changes logits in place.

    Args:
        logits: [R, vocab] float32, one row per sequence.
        token_bytes: returns the bytes of a token id; `first` says that the token begins its text.
        special_ids: tokens that an answer's text may leave out.
        kernels: computes the log-probabilities.

    Attributes:
        asked: some rows ask for them.
    """

    def __init__(
        self,
        logits: Tensor,
        sequences: list[Sequence],
        token_bytes: Callable[..., bytes],
        special_ids: frozenset[int] = frozenset(),
        kernels: Rows = TORCH_ROWS,
    ) -> None:
        rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        self.asked = bool(rows)
        self._tops = {row: sequences[row].params.logprobs or 0 for row in rows}
        self._index = {row: index for index, row in enumerate(rows)}
        with torch.inference_mode():
            self._values = kernels.log_softmax(logits[rows]).clamp_(min=MIN_LOGPROB) if rows else logits[:0]
        self._sequences = sequences
        self._token_bytes = token_bytes
        self._special_ids = special_ids

    def for_token(self, row: int, token_id: int) -> TokenLogprobs | None:
        """Return the log-probabilities for the token drawn from `row`, if its request asks for them."""
        if row not in self._index:
            return None
        values, count = self._values[self._index[row]], self._tops[row]
        top: list[tuple[int, float]] = []
        if count:
            highest, ids = values.topk(min(count, len(values)))
            top = list(zip(ids.tolist(), highest.tolist(), strict=True))
        logprob = values[token_id].item()
        sequence, special_ids = self._sequences[row], self._special_ids
        return spell_next(sequence, token_id, logprob, top, token_bytes=self._token_bytes, special_ids=special_ids)


def spell_next(
    sequence: Sequence,
    token_id: int,
    logprob: float,
    top: Collection[tuple[int, float]],
    *,
    token_bytes: Callable[..., bytes],
    special_ids: frozenset[int],
) -> TokenLogprobs:
    """Return the log-probabilities of the next token of a sequence; see `spell` and `StepLogprobs`."""
    spelled_as = partial(token_bytes, first=sequence.num_output_tokens == 0)
    hidden = special_ids if sequence.params.skip_special_tokens else frozenset()
    return spell(token_id, logprob, top, spelled_as, hidden=hidden)


def spell(
    token_id: int,
    logprob: float,
    top: Collection[tuple[int, float]],
    token_bytes: Callable[[int], bytes],
    *,
    hidden: frozenset[int] = frozenset(),
    rank: int = 0,
) -> TokenLogprobs:
    """Return the log-probabilities of a token and of the most likely ones, with the tokens' texts.

    Args:
        hidden: tokens that are not in the answer's text.
    """
    exact = dict.fromkeys(hidden.intersection((token_id, *(i for i, _ in top))), b"")

    def piece(index: int) -> str:
        data = token_bytes(index)
        try:
            return data.decode()
        except UnicodeDecodeError:
            exact[index] = data
            return data.decode(errors="replace")

    return TokenLogprobs(logprob, tuple((i, value, piece(i)) for i, value in top), piece(token_id), exact, rank)
