"""Linear layers in plain torch: packed for oneDNN once at load on the CPU, used as they are elsewhere.

On the CPU a row of the product has the same bits whatever other rows are in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.engine.quantization.interface import Linear
from workers.engine.quantization.onednn_internals import can_pack, pack, packed_linear

_PROBED_ROWS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 24, 32, 33, 48)
_TYPICAL_ROWS = 32  # oneDNN chooses a layout for the weight by it
_log = structlog.get_logger(__name__)


class PlainLinear:
    """`torch.nn.functional.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class PackedLinear:
    """A weight reordered for oneDNN: about twice as fast as a plain one.

    oneDNN may take another kernel, with sums in another order, for very few rows; such inputs are padded.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = pack(weight, _TYPICAL_ROWS)
        self._bias = bias
        self._min_rows = self._probe(weight.shape[1], weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        missing = self._min_rows - len(x)
        if missing > 0 and len(x):
            return self._product(torch.nn.functional.pad(x, (0, 0, 0, missing)))[: len(x)]
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        return packed_linear(x, self._weight, self._bias)

    def _probe(self, size: int, dtype: torch.dtype) -> int:
        """The fewest rows from which on a row's bits do not depend on the number of rows."""
        x = torch.linspace(-1, 1, 64 * size).sin().view(64, size).to(dtype)
        expected = self._product(x)
        varying = [rows for rows in _PROBED_ROWS if not torch.equal(self._product(x[:rows]), expected[:rows])]
        if not varying:
            return 1
        if varying[-1] == _PROBED_ROWS[-1]:
            _log.warning("linear_rows_vary", size=size, effect="answers may depend on the batch in the last bit")
            return 1
        return _PROBED_ROWS[_PROBED_ROWS.index(varying[-1]) + 1]


def join(weights: Sequence[Tensor]) -> Tensor:
    """One [out, in] whose outputs are those of all."""
    return torch.cat(tuple(weights)) if len(weights) > 1 else weights[0]


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fast form for the weight's device and dtype; weight is [out, in]."""
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)
