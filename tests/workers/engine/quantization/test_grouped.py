"""Weights of 4 and 8 bits in groups: rounding, and the C++ and Triton products against the torch reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from tests.support.checkpoints import DEVICE
from tests.support.engine_driver import load, run
from workers.engine import engine
from workers.engine.calibration import load as calibration
from workers.engine.config import EngineConfig
from workers.engine.kernels.build import load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.kernels.triton_linear import TritonGroupedLinear
from workers.engine.quantization.formats import FORMATS
from workers.engine.quantization.grouped_linear import CppGroupedLinear, TorchGroupedLinear
from workers.engine.quantization.grouped_weight import Bits, GroupedWeight, concatenate, quantize_groups
from workers.engine.quantization.int4 import GroupedIntegers
from workers.engine.quantization.packed_arrays import OWN_ARRAYS

# inputs, outputs, group
SIZES = [(576, 960, 32), (576, 200, 16), (1536, 200, 128), (48, 80, 64), (33, 7, 16), (33, 7, 32), (1, 1, 32)]


@pytest.fixture(scope="module")
def compiled() -> CppKernels:
    cache = EngineConfig(Path()).cache_dir
    assert cache is not None
    return CppKernels(load_library(cache / "kernels"), GroupedIntegers(4))


def random_weight(size: tuple[int, int, int], bits: Bits, *, ordered: bool = False) -> GroupedWeight:
    """Return random weights, with groups of equal values and of zeros; small groups are narrow.

    `ordered`: groups of scattered inputs.
    """
    inputs, outputs, group = size
    weight = torch.randn(outputs, inputs) * 0.02
    weight[0], weight[-1, : group // 2] = 0, -3
    found = quantize_groups(weight, bits, group, narrow=group < 32)
    if not ordered:
        return found
    return replace(found, order=torch.randperm(inputs))


@pytest.mark.parametrize(("bits", "narrow"), [(4, False), (4, True), (8, False)])
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1.0, 1e20])
def test_rounding_is_within_half_a_step(bits: Bits, narrow: bool, scale: float) -> None:
    torch.manual_seed(4)
    weight = torch.randn(40, 200) * scale
    weight[3, 32:64], weight[4, :32], weight[5] = 7 * scale, -scale, 0
    weight[6, :32] = scale * (1 + torch.arange(32) * 1e-7)
    rounded = quantize_groups(weight, bits, 32, narrow=narrow)
    found = rounded.dequantize()
    padded = torch.nn.functional.pad(weight, (0, 24)).view(40, -1, 32)
    low, high = padded.aminmax(dim=-1)
    if narrow:  # the range includes 0; scales have 8 bits below the largest of the output, and zeros 8 bits
        assert rounded.scales.eq(rounded.scales.byte()).all()
        assert (rounded.zeros * 16).eq((rounded.zeros * 16).byte()).all()
        step = (high.clamp_min(0) - low.clamp_max(0)) / 15
        slack = 2.0**-5 * step + 8 * step.amax(-1, keepdim=True) / 128
    else:
        step = (high - low) / (2**bits - 1)
        slack = 2.0**-9 * padded.abs().amax(-1)  # scales and zeros have 11 bits
    error = torch.nn.functional.pad(found - weight, (0, 24)).view(40, -1, 32).abs().amax(-1)
    assert (error <= 0.51 * step + slack).all()
    assert (found[5] == 0).all()


def test_weights_of_a_four_bit_file_are_reproduced() -> None:
    """Given weights that are a scale times an integer below 16 plus a minimum, in groups of 32."""
    torch.manual_seed(4)
    codes = torch.randint(0, 16, (64, 8, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    weight = (0.01 * torch.rand(64, 8, 1).half().float() * codes - 0.07).view(64, 256)
    found = quantize_groups(weight, 4, 32).dequantize()
    torch.testing.assert_close(found, weight, rtol=0, atol=2e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("plain", [True, False])
def test_cpp_and_torch_compute_the_same_bits(
    compiled: CppKernels, size: tuple[int, int, int], bits: Bits, plain: bool
) -> None:
    """With a bias and scattered groups unless `plain`."""
    torch.manual_seed(2)
    weight = random_weight(size, bits, ordered=not plain)
    bias = None if plain else torch.randn(size[1])
    x = torch.randn(103, size[0]) * 3
    x[4] = 0
    fast = CppGroupedLinear(compiled._library, None, weight, bias, OWN_ARRAYS)
    slow = TorchGroupedLinear(weight, bias)
    together = fast(x)
    assert torch.equal(together, slow(x))
    for rows in (1, 2, 3, 4, 5, 6, 7, 32, 97):
        assert torch.equal(fast(x[-rows:].contiguous()), together[-rows:]), f"{rows} rows"
    expected = linear(x, weight.dequantize(), bias)
    assert (together - expected).abs().max() <= 2e-4 * expected.abs().max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size", "plain"), [((48, 80, 64), False), ((33, 7, 16), True)])
def test_triton_matches_the_expanded_weight(size: tuple[int, int, int], bits: Bits, plain: bool) -> None:
    torch.manual_seed(2)
    weight = random_weight(size, bits, ordered=not plain)
    moved = {name: getattr(weight, name) for name in ("codes", "scales", "zeros", "factors", "order")}
    on_device = {name: part if part is None else part.to(DEVICE) for name, part in moved.items()}
    there = GroupedWeight(bits=bits, group=weight.group, inputs=weight.inputs, **on_device)
    bias = None if plain else torch.randn(size[1])
    x = torch.randn(18, size[0])
    layer = TritonGroupedLinear(there, bias if bias is None else bias.to(DEVICE))
    together = layer(x.to(DEVICE))
    torch.testing.assert_close(together.cpu(), linear(x, weight.dequantize(), bias), rtol=1e-4, atol=1e-5)
    few = layer(x[:5].to(DEVICE))
    assert torch.equal(layer(x[4:5].to(DEVICE)), few[4:])


def test_largest_sums_do_not_overflow(compiled: CppKernels) -> None:
    """Given the largest group and the largest integers of both signs."""
    shape, halves = (3, 256), torch.ones(3, 1).half()
    for bits, code in ((4, 15), (8, -128)):
        codes = torch.full(shape, code, dtype=torch.uint8 if bits == 4 else torch.int8)
        weight = GroupedWeight(bits, 256, codes, halves, halves * 0, torch.ones(3), 256)
        for layer in (
            CppGroupedLinear(compiled._library, None, weight, None, OWN_ARRAYS),
            TorchGroupedLinear(weight, None),
        ):
            found = layer(torch.full((2, 256), -4.0))
            torch.testing.assert_close(found, torch.full((2, 3), -4.0 * 256 * code), rtol=1e-6, atol=0)


def test_nan_stays_in_its_row(compiled: CppKernels) -> None:
    weight, x = random_weight((40, 9, 32), 4), torch.randn(4, 40)
    x[1, 7], x[2, 39] = torch.nan, -torch.inf
    fast = CppGroupedLinear(compiled._library, None, weight, None, OWN_ARRAYS)
    for layer in (fast, TorchGroupedLinear(weight, None)):
        assert [row.isnan().all().item() for row in layer(x)] == [False, True, True, False]


def test_joined_weights_have_the_outputs_of_both() -> None:
    parts = [random_weight((48, 5, 32), 4), random_weight((48, 9, 32), 4)]
    assert torch.equal(concatenate(parts).dequantize(), torch.cat([part.dequantize() for part in parts]))


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-biased"])
def test_answers_match_the_torch_reference(
    name: str, checkpoints: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same integers: calibrated by C++ and by torch, they may differ."""
    monkeypatch.setattr(calibration, "choose_kernels", lambda *_: TorchKernels())
    prompts = [list(b"a river runs"), list(b"to the mill, then "), [7]]
    settings = {"quantization": "int4", "device": "cpu", "cache_dir": cache}
    compiled = run(load(checkpoints(name), **settings), prompts)
    monkeypatch.setattr(engine, "choose_kernels", lambda *_: TorchKernels(FORMATS["int4"]))
    assert compiled == run(load(checkpoints(name), **settings), prompts)
