"""Private operators of torch, each covered by tests/workers/engine/quantization/test_onednn_internals.py.

torch exposes oneDNN's packed linear layer only to its own compiler.
"""

from __future__ import annotations

import torch
from torch import Tensor


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this CPU has a packed linear layer for `dtype`; bfloat16 needs AVX-512."""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Tensor, typical_rows: int) -> Tensor:
    """Reorder a weight [out, in] into the layout that oneDNN prefers for inputs of `typical_rows`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, typical_rows)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [rows, in] times a packed weight, plus `bias`: [rows, out]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out
