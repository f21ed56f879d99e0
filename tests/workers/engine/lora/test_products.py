"""The C++ kernel of adapters' products, beside the products of linear layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.engine.kernels.build import load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.quantization.low_rank import LowRank, Rows, add_products
from workers.engine.quantization.unquantized import UNQUANTIZED


@pytest.fixture(scope="module")
def kernels() -> CppKernels:
    return CppKernels(load_library(Path.home() / ".cache" / "headrace" / "kernels"), UNQUANTIZED)


@pytest.mark.parametrize(("inputs", "outputs"), [(48, 80), (5, 3), (130, 17), (64, 64)])
def test_rows_have_the_bits_of_linear_layers(inputs: int, outputs: int, kernels: CppKernels) -> None:
    """Given ranks of less and more than a panel, adjacent and scattered rows, and rows without an adapter."""
    generator = torch.Generator().manual_seed(inputs)
    x, out = (torch.randn(40, size, generator=generator) for size in (inputs, outputs + 5))
    numbers = torch.tensor([3, *range(5, 30), 39, 1, 33, 0, 37])
    spans = ((0, 1, slice(3, 4)), (1, 25, slice(5, 30)), (26, 3, None), (29, 2, None))
    products = []
    for span, rank in zip(spans, (1, 4, 33, 16), strict=True):
        down, up = (torch.randn(shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))
        layers = [kernels.exact_linear(each) for each in (down, up)]
        products.append((Rows(*span), LowRank(*layers, rank, start=2, outputs=outputs)))
    expected, together = out.clone(), out.clone()
    add_products(x, expected, numbers, products)
    kernels.add_products(x, together, numbers, products)
    assert torch.equal(together, expected)
    untouched = [row for row in range(40) if row not in numbers.tolist()]
    assert torch.equal(together[untouched], out[untouched])
    assert torch.equal(together[:, :2], out[:, :2])
    assert torch.equal(together[:, -3:], out[:, -3:])
    assert not torch.isclose(together[numbers], out[numbers]).all(-1).any()
    for each in products:
        kernels.add_products(x, out, numbers, [each])
    assert torch.equal(out, expected)
