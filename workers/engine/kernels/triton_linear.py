"""Linear layer with grouped weights on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.kernels.grouped_triton import grouped_product
from workers.engine.quantization.grouped_weight import GroupedWeight

_MAX_DECODE_ROWS = 64
_FEW_ROWS, _MANY_ROWS = 16, 64  # of a program; 16 are the fewest of Triton's matrix product
_COLUMNS = 64


class TritonGroupedLinear:
    """Linear layer that keeps activations in their own type and expands weights; see grouped_triton.py."""

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        self._form = (weight.groups, weight.group, weight.bits, weight.is_float)
        self._outputs = weight.outputs
        self._packed = _pack(weight)
        self._scales, self._zeros = weight.scales.t().contiguous(), weight.zeros.t().contiguous()
        self._factors, self._order, self._bias = weight.factors, weight.order, bias

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous() if self._order is None else x[:, self._order]
        out = x.new_empty(len(x), self._outputs)
        rows = _FEW_ROWS if len(x) <= _MAX_DECODE_ROWS else _MANY_ROWS
        groups, group, bits, is_float = self._form
        grouped_product[-(-len(x) // rows), -(-self._outputs // _COLUMNS)](
            x,
            self._packed,
            self._scales,
            self._zeros,
            self._factors,
            self._bias,
            out,
            len(x),
            INPUTS=x.shape[1],
            OUTPUTS=self._outputs,
            GROUPS=groups,
            GROUP=group,
            BITS=bits,
            FLOATS=is_float,
            ROWS=rows,
            COLUMNS=_COLUMNS,
        )
        return out


def _pack(weight: GroupedWeight) -> Tensor:
    if weight.bits == 8:
        return weight.codes.t().contiguous()
    eights = weight.codes.view(weight.outputs, -1, 8)
    packed = torch.zeros(eights.shape[:2], dtype=torch.int32, device=eights.device)
    for place in range(8):
        packed |= eights[:, :, place].int() << (4 * place)
    return packed.t().contiguous()
