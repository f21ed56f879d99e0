"""int8: the C++ product against the torch reference, which computes the same integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from shared.errors import ConfigError
from tests.support.checkpoints import DEVICE
from tests.support.engine_driver import load, run
from workers.engine.config import EngineConfig
from workers.engine.kernels.build import load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.kernels.triton_kernels import TritonKernels
from workers.engine.quantization.int8 import Int8, TorchInt8Linear
from workers.engine.quantization.row_integers import quantize_rows

SIZES = [(576, 960), (1536, 576), (48, 80), (33, 7), (1, 1)]


@pytest.fixture(scope="module")
def compiled() -> CppKernels:
    cache = EngineConfig(Path()).cache_dir
    assert cache is not None
    return CppKernels(load_library(cache / "kernels"), Int8())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_cpp_and_torch_compute_the_same_bits(compiled: CppKernels, size: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(size[1], size[0]) * 0.02, torch.randn(103, size[0]) * 3
    bias = torch.randn(size[1]) if biased else None
    x[4], weight[0] = 0, 0
    parts = torch.tensor_split(weight, 3) if size[1] > 1 else [weight]
    fast, slow = compiled.linear(parts, bias, keep=True), TorchInt8Linear(weight, bias)
    together = fast(x)
    assert torch.equal(together, slow(x))
    for rows in (1, 2, 3, 4, 5, 6, 7, 32, 97):
        assert torch.equal(fast(x[-rows:].contiguous()), together[-rows:]), f"{rows} rows"
    error = (together - linear(x, weight, bias)).abs().max()
    assert error < 0.01 * x.abs().max() * weight.abs().max() * size[0] ** 0.5 + 1e-6


def test_largest_sums_do_not_overflow(compiled: CppKernels) -> None:
    """Given columns with large sums, activations use fewer than 16 bits, and both implementations still agree."""
    size = 20_000
    weight, x = torch.ones(3, size), torch.full((2, size), -4.0)
    for layer in (compiled.linear([weight], None, keep=True), TorchInt8Linear(weight, None)):
        torch.testing.assert_close(layer(x), torch.full((2, 3), -4.0 * size), rtol=1e-5, atol=0)


def test_nan_stays_in_its_row(compiled: CppKernels) -> None:
    weight, x = torch.randn(9, 40), torch.randn(4, 40)
    x[1, 7], x[2, 39] = torch.nan, -torch.inf
    for layer in (compiled.linear([weight], None, keep=True), TorchInt8Linear(weight, None)):
        assert [row.isnan().all().item() for row in layer(x)] == [False, True, True, False]
        assert layer(x[[0, 3]]).isfinite().all()


def test_each_row_has_its_own_scale() -> None:
    whole, scales = quantize_rows(torch.tensor([[1.0, -2.0, 0.5], [100.0, 0.0, -10.0]]), 2047)
    assert whole.tolist() == [[1024, -2047, 512], [2047, 0, -205]]
    torch.testing.assert_close(scales, torch.tensor([2.0, 100.0]) / 2047)


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-biased"])
def test_answers_match_the_torch_reference(name: str, checkpoints: Callable[[str], Path]) -> None:
    prompts = [list(b"a river runs"), list(b"to the mill, and "), [7]]
    settings = {"quantization": "int8", "device": "cpu"}
    compiled = run(load(checkpoints(name), **settings), prompts)
    assert compiled == run(load(checkpoints(name), **settings, cache_dir=None), prompts)


@pytest.mark.parametrize("inputs", [70, 256])
def test_triton_multiplies_by_the_same_weight(inputs: int) -> None:
    torch.manual_seed(3)
    weights, bias, x = [torch.randn(20, inputs), torch.randn(13, inputs)], torch.randn(33), torch.randn(9, inputs)
    layer = TritonKernels(Int8()).linear([weight.to(DEVICE) for weight in weights], bias.to(DEVICE))
    integers, scales = quantize_rows(torch.cat(weights), 127)
    expected = linear(x, integers * scales[:, None], bias)
    torch.testing.assert_close(layer(x.to(DEVICE)).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_unknown_format_is_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match="quantization must be one of none, int8, int4"):
        EngineConfig(llama, quantization="int2")
