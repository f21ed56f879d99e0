"""Input tensors of one step, the same for every layer: a flat batch of token rows from all sequences.

A row consists of its token, its position and the number of its sequence, which has a block table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.engine.scheduling.scheduler import ScheduledBatch


class Span(NamedTuple):
    """Rows start … start + length - 1 of one sequence; the first has the position `position` in it."""

    start: int
    length: int
    position: int


@dataclass(frozen=True)
class StepInputs:
    """T rows of S sequences, of which the logits of R are computed.

    Attributes:
        tokens: [T] int64.
        positions: [T] int64, in the row's own sequence.
        sequences: [T] int64, the row of `block_tables` for each row.
        block_tables: [S, W] int64; entries past a sequence's blocks are 0 and never read.
        sample_rows: [R] int64, the rows whose logits are computed: first those that sample, then drafted tokens,
            then those that score a prompt, each in the batch's order.
        spans: the rows of each sequence.
    """

    tokens: Tensor
    positions: Tensor
    sequences: Tensor
    block_tables: Tensor
    sample_rows: Tensor
    spans: tuple[Span, ...]

    @classmethod
    def from_batch(cls, batch: ScheduledBatch) -> StepInputs:
        """Build the inputs of a batch, on the CPU."""
        items = batch.items
        sequences = [item.sequence for item in items]
        positions = [sequence.num_computed_tokens for sequence in sequences]
        if batch.num_rows == len(items):  # one token of each
            lengths = [1] * len(items)
            tokens = [sequence.tokens[position] for sequence, position in zip(sequences, positions, strict=True)]
        else:
            lengths = [item.num_rows for item in items]
            tokens = [token for item in items for token in item.tokens]
        starts = [0, *accumulate(lengths)]
        ends = starts[1:]
        sample_rows = [end - 1 - len(item.drafts) for item, end in zip(items, ends, strict=True) if item.samples]
        if batch.num_drafts:
            sample_rows += [
                row for item, end in zip(items, ends, strict=True) for row in range(end - len(item.drafts), end)
            ]
        for index in [index for index, sequence in enumerate(sequences) if sequence.echo is not None]:
            sample_rows += [starts[index] - positions[index] + scored for scored in items[index].scores]
        spans = tuple(map(Span, starts, lengths, positions))
        offsets = np.array(positions) - starts[:-1]

        def tensor(array: list[int] | np.ndarray) -> Tensor:
            return torch.as_tensor(np.asarray(array, np.int64))

        return cls(
            tokens=tensor(tokens),
            positions=tensor(np.arange(len(tokens)) + np.repeat(offsets, lengths)),
            sequences=tensor(np.repeat(np.arange(len(spans)), lengths)),
            block_tables=tensor(_block_tables(batch)),
            sample_rows=tensor(sample_rows),
            spans=spans,
        )

    def to(self, device: torch.device) -> StepInputs:
        names = ("tokens", "positions", "sequences", "block_tables", "sample_rows")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def _block_tables(batch: ScheduledBatch) -> np.ndarray:
    tables = [item.sequence.block_table for item in batch.items]
    lengths = np.array([len(table) for table in tables])
    padded = np.zeros((len(tables), lengths.max()), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(tables), np.int64)
    return padded
