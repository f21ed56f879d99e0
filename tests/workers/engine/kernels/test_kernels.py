"""C++ kernels against plain torch at odd sizes, and their compilation and cache."""

from __future__ import annotations

import _ctypes
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch
from torch.nn.functional import linear

from tests.support.checkpoints import DEVICE
from tests.support.engine_driver import load, run
from tests.support.paged_steps import FORMS, make_form, make_step
from tests.support.waiting import LIMIT_S
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import LayerCache, reference_attention
from workers.engine.kernels import Activation, HeadLayout, build, select
from workers.engine.kernels.build import BuildFailed, load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.kernels.select import choose_kernels
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.kernels.triton_kernels import TritonKernels
from workers.engine.quantization.unquantized import UNQUANTIZED

PLAIN = TorchKernels()
SPANS = [[(0, 1)], [(17, 1), (0, 1), (40, 1)], [(0, 9)], [(5, 1), (3, 8), (30, 1), (0, 33)], [(20, 19)]]


@pytest.fixture(scope="module")
def compiled() -> CppKernels:
    cache = EngineConfig(Path()).cache_dir
    assert cache is not None
    return CppKernels(load_library(cache / "kernels"), UNQUANTIZED)


def near(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("size", [8, 24, 33, 576])
def test_norms_and_activation_match_torch(compiled: CppKernels, rows: int, size: int) -> None:
    torch.manual_seed(size)
    x, residual, weight = torch.randn(rows, size), torch.randn(rows, size), torch.randn(size)
    near(compiled.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    mine, theirs = residual.clone(), residual.clone()
    near(compiled.add_rms_norm(x, mine, weight, 1e-5), PLAIN.add_rms_norm(x, theirs, weight, 1e-5))
    near(mine, theirs)
    gate_up = torch.randn(rows, 2 * size) * 20
    for activation in Activation:
        near(compiled.activate(gate_up, activation), PLAIN.activate(gate_up, activation))
    capped = PLAIN.soft_cap(gate_up, 7.0)
    near(compiled.soft_cap(gate_up, 7.0), capped)


def test_nan_stays_in_its_row(compiled: CppKernels) -> None:
    x = torch.randn(4, 40)
    x[1, 7], x[2, 39] = torch.nan, torch.inf
    weight = torch.ones(40)
    for kernels in (compiled, PLAIN):
        normed = kernels.rms_norm(x, weight, 1e-5)
        assert normed[1].isnan().all()
        assert normed[2].isnan().any()
        assert normed[[0, 3]].isfinite().all()
        activated = kernels.activate(x)
        assert activated[1, 7].isnan()
        assert activated[[0, 3]].isfinite().all()
    product = compiled.linear([torch.randn(9, 40)], None)(x)
    assert [row.isfinite().all().item() for row in product] == [True, False, False, True]


@pytest.mark.parametrize("extreme", [-1e30, -200.0, -88.0, 88.0, 200.0, 1e30])
def test_activation_of_extreme_values(compiled: CppKernels, extreme: float) -> None:
    gate_up = torch.tensor([[extreme, 2.0]])
    near(compiled.activate(gate_up), PLAIN.activate(gate_up))
    near(compiled.soft_cap(gate_up.clone(), 3.0), PLAIN.soft_cap(gate_up, 3.0))


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("name", FORMS[1:])
@pytest.mark.parametrize("heads", [6, 2])
def test_attention_of_every_form_matches_the_reference(
    compiled: CppKernels, spans: list[tuple[int, int]], name: str, heads: int
) -> None:
    """Given a row's result in a step of several sequences, it has the same bits alone."""
    torch.manual_seed(heads)
    step, form = make_step(spans, 5, 32), make_form(name, heads)
    cache = LayerCache(torch.randn(32, 2, 16, 5), torch.randn(32, 2, 5, 16))
    queries = torch.randn(len(step.positions), heads, 16)
    together = compiled.attention(queries, cache, step, form).clone()
    near(together, reference_attention(queries, cache, step, form))
    for row in range(len(queries)):
        one = slice(row, row + 1)
        alone = replace(step, positions=step.positions[one], sequences=step.sequences[one])
        assert torch.equal(compiled.attention(queries[one].contiguous(), cache, alone, form), together[one])


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 16), (4, 4, 64), (9, 3, 24), (8, 1, 12)])
@pytest.mark.parametrize("block_size", [5, 8, 16])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_cache_and_attention_match_torch(
    compiled: CppKernels,
    spans: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    normed: bool,
) -> None:
    """Given earlier positions in the cache and NaN in all other slots, both write and attend alike."""
    torch.manual_seed(dim)
    step = make_step(spans, block_size, 32)
    angles = torch.rand(64, dim // 2) * 6
    layout = HeadLayout(heads, kv_heads, dim, angles.cos(), angles.sin(), 1e-6)
    shapes = (32, kv_heads, dim, block_size), (32, kv_heads, block_size, dim)
    first = LayerCache(*(torch.full(shape, torch.nan) for shape in shapes))
    for table, (former, _) in zip(step.block_tables, spans, strict=True):
        for position in range(former):
            block, slot = table[position // block_size], position % block_size
            first.keys[block, :, :, slot] = torch.randn(kv_heads, dim)
            first.values[block, :, slot] = torch.randn(kv_heads, dim)
    second = LayerCache(first.keys.clone(), first.values.clone())
    qkv = torch.randn(len(step.positions), (heads + 2 * kv_heads) * dim)
    norms = (torch.randn(dim), torch.randn(dim)) if normed else None
    mine = compiled.rope_and_cache(qkv, layout, norms, first, step)
    theirs = PLAIN.rope_and_cache(qkv, layout, norms, second, step)
    near(mine, theirs)
    near(first.keys, second.keys)
    assert torch.equal(first.values.nan_to_num(9), second.values.nan_to_num(9))
    near(compiled.attention(mine, first, step), reference_attention(theirs, second, step))


@pytest.mark.parametrize("size", [(576, 960), (1536, 576), (48, 80), (33, 7), (1, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_product_matches_torch(compiled: CppKernels, size: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(size[1], size[0]) * 0.02, torch.randn(203, size[0])
    bias = torch.randn(size[1]) if biased else None
    parts = torch.tensor_split(weight, 3) if size[1] > 1 else [weight]
    layer = compiled.linear(parts, bias, keep=True)
    together = layer(x)
    torch.testing.assert_close(together, linear(x, weight, bias), rtol=1e-4, atol=1e-5)
    for rows in (1, 2, 3, 4, 5, 6, 7, 32, 33, 97):
        assert torch.equal(layer(x[-rows:].contiguous()), together[-rows:]), f"{rows} rows"
    assert layer(x[:0]).shape == (0, size[1])


def test_buffers_are_reused_except_for_kept_results(compiled: CppKernels) -> None:
    weight, x = torch.randn(8, 8), torch.randn(3, 8)
    reused, kept = compiled.linear([weight], None), compiled.linear([weight], None, keep=True)
    assert reused(x).data_ptr() == reused(x).data_ptr()
    first, second = kept(x), kept(-x)
    assert torch.equal(first, -second)


@pytest.mark.slow
def test_concurrent_processes_build_once(tmp_path: Path) -> None:
    """Given an empty folder and two processes, one builds, both load, and no other file is left."""
    sources, built = tmp_path / "sources", tmp_path / "built"
    sources.mkdir()
    (sources / "small.cpp").write_text('extern "C" int one() { return 1; }')
    code = (
        "import sys; from pathlib import Path; from workers.engine.kernels import build;"
        "build.SOURCE_FOLDER = Path(sys.argv[1]);"  # the kernels themselves take ten seconds
        "assert build.load_library(Path(sys.argv[2])).one() == 1"
    )
    command = [sys.executable, "-c", code, str(sources), str(built)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    logs = "".join(process.communicate(timeout=LIMIT_S)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert logs.count("kernels_built") == 1
    assert sorted(path.suffix for path in built.iterdir()) == [".lock", ".so"]


def test_other_flags_give_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    before = build._key(compiler, build._flags())
    assert build._key(compiler, build._flags()) == before
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert build._key(compiler, build._flags()) != before


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_without_a_compiler_plain_torch_is_used_and_logged(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    prompts = [list(b"a river"), list(b"mill")]
    settings = {"quantization": quantization, "device": "cpu"}
    expected = run(load(llama, **settings), prompts)
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    with structlog.testing.capture_logs() as logs:
        engine = load(llama, cache_dir=tmp_path, **settings)
    [warning] = [entry for entry in logs if entry["event"] == "kernels_unavailable"]
    assert "no C++ compiler" in warning["reason"]
    assert run(engine, prompts) == expected


def test_failed_build_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-fno-such-flag",))
    with pytest.raises(BuildFailed, match="no-such-flag"):
        load_library(tmp_path)
    config = EngineConfig(Path(), cache_dir=tmp_path)
    assert isinstance(choose_kernels(config, torch.device("cpu"), torch.float32), TorchKernels)


def test_processes_that_start_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File locks separate threads as they separate processes."""
    builds: list[Path] = []

    def fake_build(compiler: str, flags: list[str], work: Path) -> Path:
        builds.append(work)
        return Path(shutil.copyfile(_ctypes.__file__, work / "kernels.so"))

    monkeypatch.setattr(build, "_build", fake_build)
    with ThreadPoolExecutor(10) as starting:
        list(starting.map(load_library, [tmp_path] * 10))
    assert len(builds) == 1


def test_triton_is_used_on_cuda_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Triton that finds no C compiler, plain torch is used and a warning is logged."""
    assert isinstance(select._for_cuda(DEVICE, UNQUANTIZED), TritonKernels)

    def fails(kernels: TritonKernels, gate_up: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(TritonKernels, "activate", fails)
    with structlog.testing.capture_logs() as logs:
        assert isinstance(select._for_cuda(DEVICE, UNQUANTIZED), TorchKernels)
    assert [entry["reason"] for entry in logs] == ["Failed to find C compiler"]


def test_plain_torch_serves_other_dtypes_and_no_cache_folder() -> None:
    cpu = torch.device("cpu")
    assert isinstance(choose_kernels(EngineConfig(Path()), cpu, torch.bfloat16), TorchKernels)
    assert isinstance(choose_kernels(EngineConfig(Path(), cache_dir=None), cpu, torch.float32), TorchKernels)
