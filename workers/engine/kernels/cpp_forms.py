"""Arguments of the C++ kernels: structures that the headers of the same names declare and explain.

They hold addresses of tensors, which must live as long as they do.
"""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from workers.engine.execution.paged_attention import AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import SWIGLU_LIMIT, SWIGLU_STEEPNESS, Activation, HeadLayout
from workers.engine.quantization.cpp_linear import LinearForm, address

_NO_WINDOW = 2**62  # positions: more than any sequence has
_POINTER, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class CStep(ctypes.Structure):
    """`Step` of attention.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("positions", "sequences", "tables")),
        *((name, _COUNT) for name in ("width", "rows")),
    )


class CCache(ctypes.Structure):
    """`Cache` of attention.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("keys", "values")),
        *((name, _COUNT) for name in ("heads", "slots", "dim")),
    )


class CHeads(ctypes.Structure):
    """`HeadForm` of attention.h."""

    _fields_ = (
        ("heads", _COUNT),
        *((name, _POINTER) for name in ("query_norm", "key_norm")),
        ("eps", _FLOAT),
        *((name, _POINTER) for name in ("cosines", "sines")),
    )


class CAttention(ctypes.Structure):
    """`Form` of attention.h."""

    _fields_ = (("scale", _FLOAT), ("cap", _FLOAT), ("window", _COUNT), ("sinks", _POINTER))


class CActivation(ctypes.Structure):
    """`ActivationForm` of rows.h."""

    _fields_ = (("kind", _COUNT), ("steepness", _FLOAT), ("limit", _FLOAT))


class CLayer(ctypes.Structure):
    """`Layer` of layers.cpp."""

    _fields_ = (
        ("input_norm", _POINTER),
        ("qkv", LinearForm),
        ("heads", CHeads),
        ("form", CAttention),
        ("output", LinearForm),
        ("output_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("gate_up", LinearForm),
        ("activation", CActivation),
        ("down", LinearForm),
        ("mlp_output_norm", _POINTER),
        ("eps", _FLOAT),
    )


SIGNATURES: dict[str, list[Any]] = {
    "hr_add_rms_norm": [_POINTER] * 4 + [_COUNT] * 2 + [_FLOAT],
    "hr_activate": [_POINTER] * 2 + [_COUNT] * 2 + [_POINTER],
    "hr_soft_cap": [_POINTER] + [_COUNT] * 2 + [_FLOAT],
    "hr_rope_and_cache": [_POINTER] * 5,
    "hr_attention": [_POINTER] * 3 + [_COUNT] + [_POINTER] * 2,
    "hr_pack": [_POINTER] * 2 + [_COUNT] * 2,
    "hr_int8_pack": [_POINTER] * 4 + [_COUNT] * 2,
    "hr_group_pack": [_POINTER] * 4 + [_COUNT] * 5,
    "hr_adapt": [_POINTER] * 3 + [_COUNT] + [_POINTER] * 2 + [_COUNT] * 3,
    "hr_softmax": [_POINTER] * 2 + [_COUNT] * 2,
    "hr_log_softmax": [_POINTER] * 2 + [_COUNT] * 2,
    "hr_rotary_table": [_POINTER] * 3 + [_COUNT] * 2,
    "hr_draw": [_POINTER] * 3 + [_COUNT] * 2,
    "hr_linear": [_POINTER] * 3 + [_COUNT],
    "hr_layers": [_POINTER] * 2 + [_COUNT] * 2 + [_POINTER] * 4,
}


def step_form(step: StepInputs) -> CStep:
    tables = step.block_tables
    addresses = (step.positions.data_ptr(), step.sequences.data_ptr(), tables.data_ptr())
    return CStep(*addresses, tables.shape[1], len(step.positions))


def cache_form(cache: LayerCache) -> CCache:
    _, heads, slots, dim = cache.values.shape
    return CCache(cache.keys.data_ptr(), cache.values.data_ptr(), heads, slots, dim)


def head_form(layout: HeadLayout, qk_norms: tuple[Tensor, Tensor] | None) -> CHeads:
    norms = (None, None) if qk_norms is None else (qk_norms[0].data_ptr(), qk_norms[1].data_ptr())
    return CHeads(layout.num_heads, *norms, layout.norm_eps, layout.cos.data_ptr(), layout.sin.data_ptr())


def attention_form(form: AttentionForm, dim: int) -> CAttention:
    return CAttention(form.scale_of(dim), form.softcap or 0.0, form.window or _NO_WINDOW, address(form.sinks))


def activation_form(activation: Activation) -> CActivation:
    return CActivation(activation, SWIGLU_STEEPNESS, SWIGLU_LIMIT)
