"""Hand-made inputs of one engine step, for tests of attention."""

from __future__ import annotations

import torch

from workers.engine.execution.paged_attention import AttentionForm
from workers.engine.execution.step_inputs import StepInputs

FORMS = ("plain", "window", "softcap", "sinks", "all")


def make_form(name: str, heads: int) -> AttentionForm:
    """Return the form of that name in FORMS, for that many heads."""
    features = {"scale": 0.2, "window": 7, "softcap": 1.5, "sinks": torch.randn(heads)}
    if name == "plain":
        return AttentionForm()
    return AttentionForm(**(features if name == "all" else {name: features[name]}))


def make_step(spans: list[tuple[int, int]], block_size: int, num_blocks: int) -> StepInputs:
    """Return rows for (first position, number of rows) of each sequence, over shuffled blocks."""
    order = torch.randperm(num_blocks).tolist()
    width = max(-(-(first + rows) // block_size) for first, rows in spans)
    tables = torch.zeros(len(spans), width, dtype=torch.int64)
    positions: list[int] = []
    sequences: list[int] = []
    for index, (first, rows) in enumerate(spans):
        for slot in range(-(-(first + rows) // block_size)):
            tables[index, slot] = order.pop()
        positions += range(first, first + rows)
        sequences += [index] * rows
    zeros = torch.zeros(len(positions), dtype=torch.int64)
    return StepInputs(zeros, torch.tensor(positions), torch.tensor(sequences), tables, zeros[:0])
