"""Linear layers in plain torch. On the CPU, weights are packed for oneDNN when they are loaded.

On the CPU, a row of the product has the same bits whatever other rows are in the batch.
"""

from __future__ import annotations

import structlog
import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.engine.quantization.interface import Linear
from workers.engine.quantization.onednn_internals import can_pack, pack, packed_linear

_PROBED_ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 24, 32, 33, 48)
_TYPICAL_ROWS = 32  # oneDNN chooses the weight's layout by this number
_log = structlog.get_logger(__name__)


class TorchLinear:
    """Linear layer by `torch.nn.functional.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class OneDnnLinear:
    """Linear layer with a weight reordered for oneDNN, about twice as fast as a plain one.

    For very few rows, oneDNN may choose another kernel with another order of sums; such inputs are padded.
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
        """Return the number of rows from which on a row's bits do not depend on the number of rows."""
        x = torch.linspace(-1, 1, 64 * size).sin().view(64, size).to(dtype)
        expected = self._product(x)
        varying = [rows for rows in _PROBED_ROW_COUNTS if not torch.equal(self._product(x[:rows]), expected[:rows])]
        if not varying:
            return 1
        if varying[-1] == _PROBED_ROW_COUNTS[-1]:
            _log.warning(
                "linear_rows_vary", size=size, effect="the last bits of an answer's logits may depend on the batch"
            )
            return 1
        return _PROBED_ROW_COUNTS[_PROBED_ROW_COUNTS.index(varying[-1]) + 1]


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return the fast implementation for the weight's device and dtype; weight is [out, in]."""
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return OneDnnLinear(weight, bias)
    return TorchLinear(weight, bias)
