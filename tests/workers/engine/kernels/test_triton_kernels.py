"""Triton kernels against plain torch; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.checkpoints import DEVICE
from tests.support.paged_steps import FORMS, make_form, make_step
from workers.engine.execution.paged_attention import AttentionForm, LayerCache, reference_attention
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import Activation, HeadLayout, triton_kernels
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.kernels.triton_kernels import TritonKernels

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of NaN
FUSED, PLAIN = TritonKernels(), TorchKernels()
LAYOUTS = [(6, 2, 16), (4, 4, 64), (9, 3, 24), (20, 1, 12)]  # heads, key-value heads, dim
LONG = [(63, 1), (60, 5), (2, 1), (110, 2)]  # around the end of the first of two splits
BLOCKS = 32


def near(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5, equal_nan=True)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE)


def make_cache(kv_heads: int, dim: int, block_size: int, step: StepInputs, lengths: list[int]) -> LayerCache:
    """Return a cache of NaN except for the first `lengths` positions of each sequence."""
    shapes = (BLOCKS, kv_heads, dim, block_size), (BLOCKS, kv_heads, block_size, dim)
    cache = LayerCache(*(torch.full(shape, torch.nan) for shape in shapes))
    for table, length in zip(step.block_tables, lengths, strict=True):
        for position in range(length):
            block, slot = table[position // block_size], position % block_size
            cache.keys[block, :, :, slot] = torch.randn(kv_heads, dim)
            cache.values[block, :, slot] = torch.randn(kv_heads, dim)
    return LayerCache(cache.keys.to(DEVICE), cache.values.to(DEVICE))


@pytest.mark.parametrize("size", [8, 33, 576])
def test_norms_and_activation_match_torch(size: int) -> None:
    torch.manual_seed(size)
    x, residual, weight = rows(5, size), rows(5, size), rows(size)
    near(FUSED.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    mine, theirs = residual.clone(), residual.clone()
    near(FUSED.add_rms_norm(x, mine, weight, 1e-5), PLAIN.add_rms_norm(x, theirs, weight, 1e-5))
    near(mine, theirs)
    gate_up = rows(5, 2 * size) * 20
    for activation in Activation:
        near(FUSED.activate(gate_up, activation), PLAIN.activate(gate_up, activation))
    near(FUSED.soft_cap(gate_up, 7.0), PLAIN.soft_cap(gate_up, 7.0))


def test_nan_stays_in_its_row() -> None:
    x = rows(4, 40)
    x[1, 7], x[2, 39] = torch.nan, torch.inf
    normed = FUSED.rms_norm(x, torch.ones(40, device=DEVICE), 1e-5)
    assert normed[1].isnan().all()
    assert normed[2].isnan().any()
    assert normed[[0, 3]].isfinite().all()
    activated = FUSED.activate(x)
    assert activated[1, 7].isnan()
    assert activated[[0, 3]].isfinite().all()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), LAYOUTS)
@pytest.mark.parametrize(("block_size", "normed"), [(5, True), (16, False)])
def test_rope_cache_and_attention_match_torch(
    heads: int, kv_heads: int, dim: int, block_size: int, normed: bool
) -> None:
    """Given earlier positions in the cache and NaN in all other slots, both write and attend alike."""
    check_layer([(17, 1), (0, 5), (40, 1), (0, 1), (2, 3)], heads, kv_heads, dim, block_size, normed=normed)


@pytest.mark.parametrize("few", [128, 1])
def test_long_sequences_are_split(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many rows, a program also computes more rows of a prompt."""
    monkeypatch.setattr(triton_kernels, "_MIN_SPLIT_POSITIONS", 32)
    monkeypatch.setattr(triton_kernels, "_MAX_DECODE_ROWS", few)
    assert triton_kernels._split(8, 112) == (2, 64)
    check_layer(LONG, 6, 2, 16, 16, normed=False)


@pytest.mark.parametrize("name", FORMS[1:])
def test_attention_of_every_form_matches_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of short sequences, and of long ones in splits."""
    monkeypatch.setattr(triton_kernels, "_MIN_SPLIT_POSITIONS", 32)
    for spans in ([(17, 1), (0, 1), (33, 8)], LONG):
        check_attention(spans, name)


def check_attention(spans: list[tuple[int, int]], name: str) -> None:
    torch.manual_seed(1)
    step = make_step(spans, 16, BLOCKS)
    cache = make_cache(2, 16, 16, step, [first + count for first, count in spans])
    form, queries, step = on_device(make_form(name, 6)), rows(len(step.positions), 6, 16), step.to(DEVICE)
    near(FUSED.attention(queries, cache, step, form), reference_attention(queries, cache, step, form))


def on_device(form: AttentionForm) -> AttentionForm:
    return form if form.sinks is None else replace(form, sinks=form.sinks.to(DEVICE))


def check_layer(
    spans: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, block_size: int, *, normed: bool
) -> None:
    torch.manual_seed(dim)
    step = make_step(spans, block_size, BLOCKS)
    first = make_cache(kv_heads, dim, block_size, step, [former for former, _ in spans])
    step, second = step.to(DEVICE), LayerCache(first.keys.clone(), first.values.clone())
    angles = torch.rand(128, dim // 2).to(DEVICE) * 6
    layout = HeadLayout(heads, kv_heads, dim, angles.cos(), angles.sin(), 1e-6)
    qkv = rows(len(step.positions), (heads + 2 * kv_heads) * dim)
    norms = (rows(dim), rows(dim)) if normed else None
    mine = FUSED.rope_and_cache(qkv, layout, norms, first, step)
    theirs = PLAIN.rope_and_cache(qkv, layout, norms, second, step)
    near(mine, theirs)
    near(first.keys, second.keys)
    assert torch.equal(first.values.nan_to_num(9), second.values.nan_to_num(9))
    near(FUSED.attention(mine, first, step), reference_attention(theirs, second, step))


@pytest.mark.parametrize("name", ["plain", "all"])
def test_row_has_the_same_bits_in_any_chunk(name: str) -> None:
    """Given a sequence of 41 positions, its rows are the same whether 41, 5 or 1 are computed at once."""
    heads, kv_heads, dim = LAYOUTS[0]
    torch.manual_seed(1)
    whole = make_step([(0, 41)], 4, BLOCKS)
    cache = make_cache(kv_heads, dim, 4, whole, [41])
    queries, form = rows(41, heads, dim), on_device(make_form(name, heads))
    together = FUSED.attention(queries, cache, whole.to(DEVICE), form)
    for start, count in ((36, 5), (3, 6), (0, 1), (40, 1)):
        part = make_step([(start, count)], 4, BLOCKS)
        part.block_tables[:] = whole.block_tables[:, : part.block_tables.shape[1]]
        alone = FUSED.attention(queries[start : start + count].contiguous(), cache, part.to(DEVICE), form)
        assert torch.equal(alone, together[start : start + count])
