"""Linear layers packed for oneDNN against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from workers.engine.quantization.torch_linear import make_linear


@pytest.mark.parametrize("size", [(576, 960), (1536, 576), (48, 80), (33, 7)])
@pytest.mark.parametrize("biased", [False, True])
def test_row_has_the_same_bits_in_any_batch(size: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(size[1], size[0]) * 0.02, torch.randn(70, size[0])
    bias = torch.randn(size[1]) if biased else None
    packed = make_linear(weight, bias)
    together = packed(x)
    torch.testing.assert_close(together, linear(x, weight, bias), rtol=1e-4, atol=1e-5)
    for rows in (1, 2, 3, 7, 32, 33):
        assert torch.equal(packed(x[-rows:].contiguous()), together[-rows:]), f"{rows} rows"
    assert packed(x[:0]).shape == (0, size[1])
