"""Acceptance of drafted tokens: each is kept only if it is the token drawn at its place.

The token at each place is drawn as in a step of its own: from its row's logits, after the sequence has taken all
tokens before it. So penalties, grammars, stop strings and log-probabilities need no code for drafts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import HeadraceError
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.sequence import Sequence
from workers.engine.stage import Stage
from workers.engine.token_step import StepOutputs, TokenDrawer


@dataclass(frozen=True)
class DraftedRows:
    """Drafted tokens of a sequence, and the logits computed for them, [drafts, vocab] float32."""

    sequence: Sequence
    drafts: tuple[int, ...]
    logits: Tensor


def drafted_rows(batch: ScheduledBatch, logits: Tensor) -> list[DraftedRows]:
    """Return the drafts of a batch; `logits` are those of all drafted tokens, in the batch's order."""
    rows, start = [], 0
    for item in batch.items:
        if item.drafts:
            rows.append(DraftedRows(item.sequence, item.drafts, logits[start : start + len(item.drafts)]))
            start += len(item.drafts)
    return rows


def accepted_at_each_place(
    rows: list[DraftedRows], drawer: TokenDrawer, outputs: StepOutputs
) -> Iterator[list[Sequence]]:
    """Yield, for each place of the drafts, the sequences whose token there is the drafted one.

    A sequence leaves at its first other token, at its end, or if its request fails. After each place, the next
    token of those that are left is drawn and appended; the caller has counted the accepted one by then.
    """
    place = 0
    while True:
        rows = [
            row
            for row in rows
            if place < len(row.drafts)
            and not row.sequence.ended
            and row.sequence.job_id not in outputs.failed
            and row.sequence.tokens[-1] == row.drafts[place]
        ]
        if not rows:
            return
        yield [row.sequence for row in rows]
        _draw_after(rows, place, drawer, outputs)
        place += 1


def _draw_after(rows: list[DraftedRows], place: int, drawer: TokenDrawer, outputs: StepOutputs) -> None:
    """Draw and append the tokens after the drafted ones at `place`. What fails ends its own request alone."""
    logits = torch.stack([row.logits[place] for row in rows])  # a copy: drawing changes it
    sequences = [row.sequence for row in rows]
    try:
        with Stage("step", run_id=" ".join(sequence.job_id for sequence in sequences)):
            drawn = drawer.draw_now(logits, sequences)
    except HeadraceError as error:
        if len(rows) == 1:
            outputs.failed[sequences[0].job_id] = error
        for row in rows if len(rows) > 1 else ():
            _draw_after([row], place, drawer, outputs)
        return
    outputs.append(drawn)
