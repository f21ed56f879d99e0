"""Paged attention against the reference, over random sequences, chunks and block tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.checkpoints import DEVICE
from tests.support.paged_steps import FORMS, make_form, make_step
from workers.engine.execution.paged_attention import LayerCache, paged_attention, reference_attention


@pytest.mark.parametrize(
    "spans", [[(0, 1)], [(17, 1), (0, 1), (40, 1)], [(0, 9)], [(5, 1), (3, 8), (30, 1), (0, 33)]]
)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 16), (4, 4, 64), (9, 3, 24)])
@pytest.mark.parametrize("name", FORMS)
def test_paged_attention_matches_the_reference(
    spans: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, name: str
) -> None:
    """Unwritten slots hold NaN, as those of a freed block may."""
    torch.manual_seed(0)
    step = make_step(spans, 8, 32).to(DEVICE)
    shapes = (32, kv_heads, dim, 8), (32, kv_heads, 8, dim)
    cache = LayerCache(*(torch.full(shape, torch.nan, device=DEVICE) for shape in shapes))
    for table, (first, rows) in zip(step.block_tables, spans, strict=True):
        for position in range(first + rows):
            block, slot = table[position // 8], position % 8
            cache.keys[block, :, :, slot] = torch.randn(kv_heads, dim).to(DEVICE)
            cache.values[block, :, slot] = torch.randn(kv_heads, dim).to(DEVICE)
    queries = torch.randn(len(step.tokens), heads, dim).to(DEVICE)
    form = make_form(name, heads)
    if form.sinks is not None:
        form = replace(form, sinks=form.sinks.to(DEVICE))
    expected = reference_attention(queries, cache, step, form)
    torch.testing.assert_close(paged_attention(queries, cache, step, form), expected, rtol=1e-4, atol=1e-5)
