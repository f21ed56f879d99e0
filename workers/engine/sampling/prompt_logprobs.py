"""Log-probabilities of prompt tokens, for requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.engine.echo import Echo
from workers.engine.interface import MAX_LOGPROBS
from workers.engine.sampling.logprobs import MIN_LOGPROB, spell
from workers.engine.sampling.rows import Rows
from workers.engine.scheduling.scheduled_batch import ScheduledBatch

ROWS_AT_ONCE = 64  # bounds the memory beside the logits


def record_prompt_logprobs(
    batch: ScheduledBatch, logits: Tensor, token_bytes: Callable[[int], bytes], kernels: Rows
) -> None:
    """Store the log-probabilities that a step computed in the echoes of its sequences.

    Args:
        logits: [rows that score, vocab] float32, in the batch's order.
        token_bytes: returns the bytes of a token id.
        kernels: computes the log-probabilities.
    """
    rows = [(item.sequence.echo, position) for item in batch.items for position in item.scores]
    scored = [(echo, position) for echo, position in rows if echo is not None]
    for start in range(0, len(scored), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        _record(scored[part], kernels.log_softmax(logits[part]), token_bytes)


@torch.inference_mode()
def _record(rows: Sequence[tuple[Echo, int]], values: Tensor, token_bytes: Callable[[int], bytes]) -> None:
    targets = [echo.target_token(position) for echo, position in rows]
    values = values.clamp(min=MIN_LOGPROB)
    own = values.gather(1, torch.tensor(targets, device=values.device)[:, None])
    ranks = (values > own).sum(-1) + 1
    # as many for every row: which of two equal tokens comes first must not depend on the other rows
    highest, ids = values.topk(min(MAX_LOGPROBS, values.shape[1]))
    columns = zip(rows, targets, own[:, 0].tolist(), ranks.tolist(), ids.tolist(), highest.tolist(), strict=True)
    for (echo, position), target, logprob, rank, row_ids, row_values in columns:
        top = list(zip(row_ids, row_values, strict=True))[: echo.top]
        echo.record(position, spell(target, logprob, top, token_bytes, rank=rank if echo.ranked else 0))
