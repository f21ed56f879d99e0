"""Kernels that were compiled for vectors of different widths compute the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from shared.protocol import SamplingParams
from tests.support.adapters import save_adapter
from tests.support.gguf_files import SHAPE, random_model
from tests.support.paged_steps import make_step
from tests.support.portable_answers import ADAPTERS, all_answers
from tests.support.sequences import make_sequence
from tests.support.stored_checkpoints import gptq, save_stored
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import LayerCache
from workers.engine.kernels import Activation, HeadLayout
from workers.engine.kernels.build import load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.quantization.int4 import GroupedIntegers
from workers.engine.quantization.int8 import Int8
from workers.engine.quantization.interface import Quantization
from workers.engine.quantization.unquantized import UNQUANTIZED

pytestmark = pytest.mark.slow  # the first run compiles the kernels a second time
AVX512_PANEL = 32  # columns: two vectors
SPANS = [(5, 1), (3, 8), (30, 1), (0, 33), (70, 2)]


@pytest.fixture(scope="module")
def cache() -> Path:
    folder = EngineConfig(Path()).cache_dir
    assert folder is not None
    return folder / "kernels"


@pytest.fixture(scope="module")
def other_flags(cache: Path) -> tuple[str, ...]:
    """Flags for the other width: AVX2 on a CPU with AVX-512, and otherwise twice that of the CPU."""
    wide = load_library(cache).hr_panel() == AVX512_PANEL
    return ("-march=x86-64-v3",) if wide else ("-DHEADRACE_LANES=16",)


@pytest.fixture(params=[UNQUANTIZED, Int8(), GroupedIntegers(4)], ids=["none", "int8", "int4"])
def both(
    cache: Path, other_flags: tuple[str, ...], request: pytest.FixtureRequest
) -> tuple[CppKernels, CppKernels]:
    form: Quantization = request.param
    libraries = load_library(cache), load_library(cache, other_flags)
    assert libraries[0].hr_panel() != libraries[1].hr_panel()
    native, other = (CppKernels(library, form) for library in libraries)
    return native, other


@pytest.mark.parametrize("size", [1, 8, 24, 33, 100, 576])
def test_rows_and_products_are_the_same(both: tuple[CppKernels, CppKernels], size: int) -> None:
    torch.manual_seed(size)
    x, residual, weight = torch.randn(9, size), torch.randn(9, size), torch.randn(size)
    gate_up, matrix, bias = torch.randn(9, 2 * size) * 20, torch.randn(70, size), torch.randn(70)
    native, other = (
        [
            kernels.add_rms_norm(x, residual.clone(), weight, 1e-5).clone(),
            *(kernels.activate(gate_up, each).clone() for each in Activation),
            kernels.linear([matrix], bias, keep=True)(x),
        ]
        for kernels in both
    )
    assert all(torch.equal(one, two) for one, two in zip(native, other, strict=True))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 16), (9, 3, 24), (4, 4, 64)])
@pytest.mark.parametrize("block_size", [5, 16])
def test_attention_is_the_same(
    both: tuple[CppKernels, CppKernels], heads: int, kv_heads: int, dim: int, block_size: int
) -> None:
    torch.manual_seed(dim)
    step = make_step(SPANS, block_size, 80)
    angles = torch.rand(80, dim // 2) * 6
    layout = HeadLayout(heads, kv_heads, dim, angles.cos(), angles.sin(), 1e-6)
    keys, values = torch.randn(80, kv_heads, dim, block_size), torch.randn(80, kv_heads, block_size, dim)
    qkv, norms = (
        torch.randn(len(step.positions), (heads + 2 * kv_heads) * dim),
        (torch.randn(dim), torch.randn(dim)),
    )
    found = []
    for kernels in both:
        layer = LayerCache(keys.clone(), values.clone())
        queries = kernels.rope_and_cache(qkv, layout, norms, layer, step).clone()
        found.append((queries, layer.keys, kernels.attention(queries, layer, step).clone()))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("size", [1, 31, 272, 5000])
def test_draws_and_probabilities_are_the_same(both: tuple[CppKernels, CppKernels], size: int) -> None:
    logits = torch.randn(60, size, generator=torch.Generator().manual_seed(size)) * 3
    kinds = [
        *({"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "typical_p": 0.7}),
        *({"temperature": 1.1, "top_k": 30, "min_p": 0.01}, {"temperature": 0.0}),
    ]
    frequencies = torch.rand(size)
    sequences = [make_sequence(SamplingParams(seed=i, **kinds[i % len(kinds)]), [1], []) for i in range(60)]
    native, other = (
        [
            torch.tensor(kernels.rows().draw(logits, sequences)),
            kernels.rows().log_softmax(logits),
            kernels.softmax(logits),
            *kernels.rotary_table(frequencies, 300),
        ]
        for kernels in both
    )
    assert all(torch.equal(one, two) for one, two in zip(native, other, strict=True))


def test_answers_have_the_same_bits(
    checkpoints: Callable[[str], Path], other_flags: tuple[str, ...], tmp_path: Path
) -> None:
    """Given a process whose kernels and whose torch have vectors of another width, tokens, log-probabilities and
    fingerprints are equal, to the last bit: with adapters and packed weights too."""
    adapted = Path(shutil.copytree(checkpoints("llama"), tmp_path / "adapted"))
    save_adapter(adapted / ADAPTERS / "a", adapted)
    folders = [adapted, *(checkpoints(name) for name in ("qwen3", "gemma2", "qwen3-moe", "gpt-oss"))]
    for bits in (4, 8):
        stored = {"quant_method": "gptq", "bits": bits, "group_size": 32}
        model = random_model(LlamaConfig(**SHAPE))
        folders.append(save_stored(tmp_path / f"gptq-{bits}", model, gptq(bits, 32, scattered=True), stored))
    width = "avx2" if other_flags[0].startswith("-march") else "default"
    made = subprocess.run(
        [sys.executable, "-m", "tests.support.portable_answers", " ".join(other_flags), *map(str, folders)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": width},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(made.stdout.splitlines()[-1])
    assert found["capability"] != torch.backends.cpu.get_cpu_capability()
    assert found["answers"] == all_answers(folders)
