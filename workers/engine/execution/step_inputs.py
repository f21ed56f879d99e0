"""Input tensors of one step, the same for every layer: a flat batch of token rows from all sequences.

A row consists of its token, its position and the number of its sequence, which has a block table.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.sequence import Sequence

MAX_CACHED_COUNTS = 64  # numbers of rows whose row numbers are kept


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
    """

    tokens: Tensor
    positions: Tensor
    sequences: Tensor
    block_tables: Tensor
    sample_rows: Tensor

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The rows of each sequence. They follow from the tensors, since few kernels need them."""
        lengths = torch.bincount(self.sequences).tolist()
        starts = [0, *accumulate(lengths)][:-1]
        return tuple(map(Span, starts, lengths, self.positions[starts].tolist()))

    @classmethod
    def from_batch(cls, batch: ScheduledBatch) -> StepInputs:
        """Build the inputs of a batch, on the CPU."""
        items, sequences = batch.items, batch.sequences
        first = [sequence.num_computed_tokens for sequence in sequences]
        tables = _tensor(_block_tables(sequences))
        if batch.decodes:
            count, rows = len(items), _row_numbers(len(items))
            numbers = array("q", [sequence.tokens[-1] for sequence in sequences] + first)
            tokens = torch.frombuffer(numbers, dtype=torch.int64, count=count)
            positions = torch.frombuffer(numbers, dtype=torch.int64, offset=count * numbers.itemsize)
            return cls(tokens, positions, rows, tables, rows)
        lengths = [item.num_rows for item in items]
        ends = list(accumulate(lengths))
        owners = np.repeat(np.arange(len(items)), lengths)
        offsets = np.array(first) - np.array(ends) + np.array(lengths)
        return cls(
            tokens=_tensor([token for item in items for token in item.tokens]),
            positions=_tensor(np.arange(len(owners)) + offsets[owners]),
            sequences=_tensor(owners),
            block_tables=tables,
            sample_rows=_tensor(_sample_rows(batch, ends)),
        )

    @property
    def samples_each_row(self) -> bool:
        """True if each row is of another sequence, and the logits of all are computed, in this order."""
        return self.sample_rows is self.sequences

    def to(self, device: torch.device) -> StepInputs:
        if self.tokens.device == device:  # five calls of torch less, in each step on the CPU
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: each.to(device, non_blocking=True) for name, each in tensors.items()})


def _tensor(numbers: list[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(numbers, np.int64))


@lru_cache(MAX_CACHED_COUNTS)
def _row_numbers(count: int) -> Tensor:
    """Return 0 … count - 1, which nothing may change. After a model's step, calls of numpy and torch take long."""
    return _tensor(np.arange(count))


def _sample_rows(batch: ScheduledBatch, ends: list[int]) -> list[int]:
    """Return `sample_rows`; the rows of each item of the batch end before the row `ends`."""
    items = batch.items
    rows = [end - 1 - len(item.drafts) for item, end in zip(items, ends, strict=True) if item.samples]
    if batch.num_drafts:
        rows += [row for item, end in zip(items, ends, strict=True) for row in range(end - len(item.drafts), end)]
    for index in [index for index, item in enumerate(items) if item.sequence.echo is not None]:
        item = items[index]
        start = ends[index] - item.num_rows - item.sequence.num_computed_tokens
        rows += [start + scored for scored in item.scores]
    return rows


def _block_tables(sequences: list[Sequence]) -> np.ndarray:
    tables: list[array[int] | bytes] = [sequence.block_table for sequence in sequences]
    lengths = set(map(len, tables))
    width = max(lengths)
    if len(lengths) > 1:
        padding = {length: bytes(8 * (width - length)) for length in lengths}
        tables = [part for table in tables for part in (table, padding[len(table)])]
    return np.frombuffer(bytearray().join(tables), np.int64).reshape(-1, width)
