"""Inputs of one engine step, and a sequence to sample for."""

from __future__ import annotations

import torch

from shared.protocol import SamplingParams
from workers.engine.execution.step_inputs import Span, StepInputs
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream


def make_step(spans: list[tuple[int, int]], block_size: int, num_blocks: int) -> StepInputs:
    """Return inputs for sequences given by (first position, number of rows), over shuffled blocks."""
    order = torch.randperm(num_blocks).tolist()
    width = max(-(-(first + rows) // block_size) for first, rows in spans)
    tables = torch.zeros(len(spans), width, dtype=torch.int64)
    positions: list[int] = []
    sequences: list[int] = []
    flat: list[Span] = []
    for index, (first, rows) in enumerate(spans):
        for slot in range(-(-(first + rows) // block_size)):
            tables[index, slot] = order.pop()
        flat.append(Span(len(positions), rows, first))
        positions += range(first, first + rows)
        sequences += [index] * rows
    zeros = torch.zeros(len(positions), dtype=torch.int64)
    return StepInputs(zeros, torch.tensor(positions), torch.tensor(sequences), tables, zeros[:0], tuple(flat))


def make_sequence(params: SamplingParams, prompt: list[int], output: list[int], choice: int = 0) -> Sequence:
    text = TextStream(lambda ids: "")
    return Sequence("r", choice, 0, params, prompt + output, len(prompt), 99, frozenset(), text)
