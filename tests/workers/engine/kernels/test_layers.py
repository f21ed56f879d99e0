"""Layers that C++ computes together have the bits of their operations, whatever the number of rows and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.settings import QuantizationName
from tests.support.paged_steps import make_step
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import LayerCache, make_layer_caches
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import LayerWeights, cpp_layers
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.kernels.cpp_layers import CppLayers
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.decoder import Decoder
from workers.engine.models.loader import load_model, read_model_config

CPU, BLOCKS, BLOCK_SIZE = torch.device("cpu"), 40, 5
STEPS = {
    "one row": [(17, 1)],
    "a row of each sequence": [(17, 1), (0, 1), (40, 1)],
    "chunks": [(5, 1), (3, 8), (30, 1), (0, 33), (20, 19)],
    "many rows": [(0, 50), (0, 50), (10, 30)],
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(folder: Path, quantization: QuantizationName) -> Decoder:
    config = EngineConfig(folder, quantization=quantization)
    return load_model(
        folder,
        read_model_config(folder),
        choose_kernels(config, CPU, torch.float32),
        dtype=torch.float32,
        device=CPU,
        max_model_len=64,
        progress=lambda _: None,
    )


@torch.inference_mode()
def compute(model: Decoder, step: StepInputs) -> tuple[Tensor, list[LayerCache]]:
    """Return logits of all rows, and the caches, which have the same random keys and values before each step."""
    torch.manual_seed(0)
    c = model.config
    caches = make_layer_caches(c.num_layers, (BLOCKS, c.num_kv_heads, BLOCK_SIZE, c.head_dim), torch.float32, CPU)
    for cache in caches:
        cache.keys.normal_()
        cache.values.normal_()
    logits = model.forward(step, caches)
    assert logits is not None
    return logits.clone(), caches


def steps() -> list[StepInputs]:
    torch.manual_seed(1)
    made = []
    for spans in STEPS.values():
        step = make_step(spans, BLOCK_SIZE, BLOCKS)
        step.tokens.random_(0, 200)
        made.append(replace(step, sample_rows=torch.arange(len(step.tokens))))
    return made


def same(mine: tuple[Tensor, list[LayerCache]], theirs: tuple[Tensor, list[LayerCache]]) -> bool:
    caches = zip(mine[1], theirs[1], strict=True)
    return torch.equal(mine[0], theirs[0]) and all(
        torch.equal(one.keys, two.keys) and torch.equal(one.values, two.values) for one, two in caches
    )


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("llama", "int8"), ("llama", "int4"), ("llama-biased", "none"), ("qwen3", "int8"), ("gemma2", "none")],
)
def test_fused_layers_have_the_bits_of_their_operations(
    name: str, quantization: QuantizationName, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With biases, norms of queries and keys, windows, soft caps and norms of added values; on 1 to 5 threads."""
    fused = load(checkpoints(name), quantization)
    fuse = CppKernels.layers
    monkeypatch.setattr(CppKernels, "layers", lambda *_: None)
    separate = load(checkpoints(name), quantization)
    monkeypatch.setattr(CppKernels, "layers", fuse)
    for step in steps():
        torch.set_num_threads(2)
        expected = compute(separate, step)
        for threads, at_once in ((1, 2**27), (2, 2**27), (2, 1), (5, 2**27)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(cpp_layers, "MULTIPLY_ADDS_AT_ONCE", at_once)
            assert same(compute(fused, step), expected), f"{len(step.tokens)} rows, {threads} threads"


@pytest.mark.parametrize(("name", "is_fused"), [("mixtral", False), ("llama", True)])
def test_layers_of_experts_are_not_fused(
    name: str, is_fused: bool, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CppLayers | None] = []
    fuse = CppKernels.layers

    def recording(self: CppKernels, weights: Sequence[LayerWeights], norm_eps: float) -> CppLayers | None:
        made.append(fuse(self, weights, norm_eps))
        return made[-1]

    monkeypatch.setattr(CppKernels, "layers", recording)
    load(checkpoints(name), "none")
    assert [layers is not None for layers in made] == [is_fused]
