"""Inputs of a step as a message: one array of int64.

It has the numbers of tokens, sequences, blocks of a sequence, rows with logits and copies of blocks; then the
tensors of `StepInputs`, and the copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.execution.step_inputs import StepInputs

COUNTS = 5

Copies = Sequence[tuple[int, int]]  # of blocks: source and target


@dataclass(frozen=True)
class Step:
    """Copies of blocks, and the inputs that are computed after them."""

    copies: Copies
    inputs: StepInputs

    def encode(self) -> bytes:
        inputs = self.inputs
        sequences, width = inputs.block_tables.shape
        counts = (len(inputs.tokens), sequences, width, len(inputs.sample_rows), len(self.copies))
        return np.concatenate(
            [
                np.array(counts, np.int64),
                *(each.numpy().ravel() for each in _tensors(inputs)),
                np.array(self.copies, np.int64).ravel(),
            ]
        ).tobytes()

    @classmethod
    def decode(cls, data: bytearray) -> Step:
        whole = torch.frombuffer(data, dtype=torch.int64)
        rows, count, width, samples, copies = whole[:COUNTS].tolist()
        sizes = [rows, rows, rows, count * width, samples, 2 * copies]
        tokens, positions, sequences, tables, sample_rows, copied = torch.split(whole[COUNTS:], sizes)
        inputs = StepInputs(
            tokens=tokens,
            positions=positions,
            sequences=sequences,
            block_tables=tables.view(count, width),
            sample_rows=sample_rows,
        )
        return cls([(source, target) for source, target in copied.view(-1, 2).tolist()], inputs)


def _tensors(inputs: StepInputs) -> tuple[Tensor, ...]:
    return inputs.tokens, inputs.positions, inputs.sequences, inputs.block_tables, inputs.sample_rows
