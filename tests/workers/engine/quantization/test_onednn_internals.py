"""Private operators of torch behave as `onednn_internals` expects; a torch release that changes them fails here."""

from __future__ import annotations

import torch

from workers.engine.quantization.onednn_internals import can_pack, pack, packed_linear


def test_torch_has_the_packed_layer() -> None:
    """Without the operator, can_pack is False, and the fallback would silently cost half of the speed."""
    assert torch.backends.mkldnn.is_available()
    assert can_pack(torch.float32)
    assert isinstance(can_pack(torch.bfloat16), bool)
    assert not can_pack(torch.float64)


def test_packed_product_matches_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(size, generator=generator) for size in ((24, 16), (32, 16)))
    for bias in (None, torch.randn(24, generator=generator)):
        product = packed_linear(x, pack(weight, 32), bias)
        torch.testing.assert_close(product, torch.nn.functional.linear(x, weight, bias))
