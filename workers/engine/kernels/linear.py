"""Linear layers in plain torch: weights are packed once at load for oneDNN on the CPU, and used as they are
elsewhere; or quantized.

On the CPU a row of the product has the same bits whatever rows stand beside it. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.engine.kernels import Linear
from workers.engine.kernels.onednn_internals import can_pack, pack, packed_linear

_PROBED_ROWS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 24, 32, 33, 48)
_TYPICAL_ROWS = 32  # oneDNN chooses a layout for the weight by it
_WEIGHT_LEVELS = 127
_LEAST = 1e-30  # rows smaller than it are 0
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


class PlainInt8Linear:
    """Weights int8 with a scale per output, activations int16 with a scale per row: the integers of int8.cpp.

    Sums of whole numbers are exact in float64, whatever their order; so it is slow and needs eight bytes a weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        whole, self._scales = quantize_rows(weight.float(), _WEIGHT_LEVELS)
        self._weight = whole.double()
        self._bias = bias
        self._levels = activation_levels(int(whole.abs().sum(-1).max()))

    def __call__(self, x: Tensor) -> Tensor:
        whole, scales = quantize_rows(x.float(), self._levels)
        out = linear(whole.double(), self._weight).float() * (scales[:, None] * self._scales)
        return (out if self._bias is None else out + self._bias).to(x.dtype)


def activation_levels(largest_sum: int) -> int:
    """The most that an activation may be: what of 16 bits cannot overflow 32 in a column of such weights."""
    return min(2**15 - 1, (2**31 - 1) // max(1, largest_sum))


def quantize_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """[T, n] as whole numbers of at most `levels`, and the scale of each row: 0 for one of zeros, NaN where a
    number is missing or infinite.
    """
    most = x.abs().amax(-1)
    most = torch.where(x.isfinite().all(-1), most, torch.nan)
    sound = most >= _LEAST
    steps = torch.full_like(most, levels)
    whole = (x * torch.where(sound, steps / most, 0)[:, None]).round()
    scales = torch.where(sound | most.isnan(), most / steps, 0)
    return torch.where(sound[:, None], whole, 0), scales


def join(weights: Sequence[Tensor]) -> Tensor:
    """One [out, in] whose outputs are those of all."""
    return torch.cat(tuple(weights)) if len(weights) > 1 else weights[0]


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fast form for the weight's device and dtype; weight is [out, in]."""
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)
