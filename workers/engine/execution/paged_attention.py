"""Causal attention over the paged KV cache, in plain torch.

`paged_attention` runs on every device; `reference_attention`, slow and simple, has the same signature and tests it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.execution.step_inputs import Span, StepInputs


@dataclass(frozen=True)
class AttentionForm:
    """Form of a layer's attention; by default it covers all positions up to a row's own.

    Attributes:
        scale: factor on scores; None for dim ** -0.5.
        window: positions that a row sees, its own included; None for all.
        softcap: c, where scores become c * tanh(score / c); None for scores as they are.
        sinks: [heads], a logit for each head that takes part in the softmax without a value.
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def scale_of(self, dim: int) -> float:
        return dim**-0.5 if self.scale is None else self.scale


PLAIN_ATTENTION = AttentionForm()


@dataclass(frozen=True)
class LayerCache:
    """Keys [block, kv_head, dim, slot] and values [block, kv_head, slot, dim] of one layer.

    Products with queries read adjacent slots of one dimension; sums of values read adjacent dimensions.
    """

    keys: Tensor
    values: Tensor

    @property
    def block_size(self) -> int:
        return self.keys.shape[3]


def make_cache(
    num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the uninitialized memory [layers, 2, blocks, kv_heads, block_size, dim] of a cache.

    The system allocates it as blocks are written.
    """
    return torch.empty((num_layers, 2, *shape), dtype=dtype, device=device)


def layer_caches(cache: Tensor) -> list[LayerCache]:
    """Return the caches of the layers in the memory from `make_cache`."""
    _, _, blocks, heads, slots, dim = cache.shape
    return [LayerCache(keys.view(blocks, heads, dim, slots), values) for keys, values in cache]


def make_layer_caches(
    num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[LayerCache]:
    """Return uninitialized caches of `shape` [blocks, kv_heads, block_size, dim]."""
    return layer_caches(make_cache(num_layers, shape, dtype, device))


def write_cache(cache: LayerCache, step: StepInputs, keys: Tensor, values: Tensor) -> None:
    """Write the rows' keys and values, [T, kv_heads, dim] each, to the slots of their positions."""
    blocks = step.block_tables[step.sequences, step.positions // cache.block_size]
    slots = step.positions % cache.block_size
    cache.keys[blocks, :, :, slots] = keys
    cache.values[blocks, :, slots] = values


def reference_attention(
    queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
) -> Tensor:
    """Compute `paged_attention` row by row, in float64."""
    num_rows, num_heads, dim = queries.shape
    group = num_heads // cache.keys.shape[1]
    out = torch.empty_like(queries)
    for row in range(num_rows):
        length = int(step.positions[row]) + 1
        table = step.block_tables[step.sequences[row]]
        first = 0 if form.window is None else max(0, length - form.window)
        positions = torch.arange(first, length, device=queries.device)
        where = (table[positions // cache.block_size], slice(None), positions % cache.block_size)
        both = (cache.keys.transpose(2, 3), cache.values)
        keys, values = (t[where].double().repeat_interleave(group, dim=1) for t in both)
        scores = torch.einsum("hd,phd->hp", queries[row].double(), keys) * form.scale_of(dim)
        weights = _softmax(scores[None, None], form)[0, 0]
        out[row] = torch.einsum("hp,phd->hd", weights, values).to(out.dtype)
    return out.reshape(num_rows, -1)


def paged_attention(
    queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
) -> Tensor:
    """Attend from each row to the cached positions of its sequence, up to and including its own, as `form` says.

    Args:
        queries: [T, heads, dim].

    Returns:
        [T, heads * dim].
    """
    out = torch.empty_like(queries)
    single = [i for i, span in enumerate(step.spans) if span.length == 1]
    if single:
        _attend_single_rows(queries, cache, step, single, form=form, out=out)
    for index, span in enumerate(step.spans):
        if span.length > 1:
            rows = slice(span.start, span.start + span.length)
            blocks = step.block_tables[index : index + 1]
            out[rows] = _attend_span(queries[rows], cache, step.positions[rows], blocks, span, form=form)
    return out.reshape(len(queries), -1)


def _gather(cache: LayerCache, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Gather [S, W] blocks: keys [S, kv_heads, dim, W * block_size], values [S, kv_heads, W * block_size, dim]."""
    seqs, width = tables.shape
    _, heads, slots, dim = cache.values.shape
    keys = cache.keys[tables].permute(0, 2, 3, 1, 4).reshape(seqs, heads, dim, width * slots)
    values = cache.values[tables].transpose(1, 2).reshape(seqs, heads, width * slots, dim)
    return keys, values


def _attend_single_rows(
    queries: Tensor, cache: LayerCache, step: StepInputs, indices: list[int], *, form: AttentionForm, out: Tensor
) -> None:
    """Compute all sequences that have one row together, padded to the longest."""
    spans = [step.spans[i] for i in indices]
    width = max(span.position for span in spans) // cache.block_size + 1
    rows = torch.tensor([span.start for span in spans], device=queries.device)
    tables = step.block_tables[torch.tensor(indices, device=queries.device), :width]
    keys, values = _gather(cache, tables)
    seqs, kv_heads, dim, length = keys.shape
    seen = _seen(length, step.positions[rows], form)
    grouped = queries[rows].view(seqs, kv_heads, -1, dim)
    scores = (grouped @ keys) * form.scale_of(dim)
    weights = _softmax(scores, form, seen[:, None, None])
    # stale slots may hold NaN, which a weight of 0 would not hide
    values = values.masked_fill(~seen[:, None, :, None], 0)
    out[rows] = (weights @ values).view(seqs, -1, dim)


def _attend_span(
    queries: Tensor, cache: LayerCache, positions: Tensor, blocks: Tensor, span: Span, *, form: AttentionForm
) -> Tensor:
    """Compute one sequence that has several rows; `blocks` is its block table, [1, W]."""
    end = span.position + span.length
    keys, values = _gather(cache, blocks[:, : -(-end // cache.block_size)])
    keys, values, seen = keys[..., :end], values[:, :, :end], _seen(end, positions, form)
    if form.softcap is not None or form.sinks is not None:
        _, kv_heads, dim, _ = keys.shape
        grouped = queries.view(len(queries), kv_heads, -1, dim)
        weights = _softmax((grouped @ keys) * form.scale_of(dim), form, seen[:, None, None])
        return (weights @ values).view(queries.shape)
    attended = scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(2, 3),
        values,
        attn_mask=seen,
        scale=form.scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)


def _seen(length: int, positions: Tensor, form: AttentionForm) -> Tensor:
    """Return which of the first `length` positions each row sees, [T, length]."""
    all_positions, own = torch.arange(length, device=positions.device), positions[:, None]
    seen = all_positions <= own
    return seen if form.window is None else seen & (all_positions > own - form.window)


def _softmax(scores: Tensor, form: AttentionForm, seen: Tensor | None = None) -> Tensor:
    """Return the weights of scaled scores [T, kv_heads, heads, L]; `seen` is broadcast to them."""
    if form.softcap is not None:
        scores = (scores / form.softcap).tanh() * form.softcap
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    if form.sinks is None:
        return scores.softmax(-1)
    sinks = form.sinks.to(scores.dtype).view(*scores.shape[1:-1], 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
