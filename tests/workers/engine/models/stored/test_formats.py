"""Quantized checkpoints answer as transformers does with the weights that they mean, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from shared.errors import ConfigError
from tests.support.checkpoints import DEVICE, byte_tokenizer, hf_greedy
from tests.support.engine_driver import load, run
from tests.support.gguf_files import SHAPE, random_model
from tests.support.stored_checkpoints import (
    Store,
    awq,
    compressed,
    compressed_config,
    fp8,
    gptq,
    save_stored,
)
from workers.engine.config import EngineConfig
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.kernels.triton_kernels import TritonKernels
from workers.engine.kernels.triton_linear import TritonGroupedLinear
from workers.engine.models.checkpoint import SafetensorsCheckpoint, WeightReader, read_json
from workers.engine.models.stored.formats import parse_stored_format
from workers.engine.quantization.grouped_linear import CppGroupedLinear
from workers.engine.quantization.grouped_weight import GroupedWeight

PROMPTS = [list(b"a river runs"), list(b"to the mill, and "), [7]]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
W4, W8 = {"num_bits": 4, "type": "int", "strategy": "group"}, {"num_bits": 8, "type": "int", "strategy": "channel"}
CASES: dict[str, tuple[Store, dict[str, Any], bool]] = {  # the last: whether weights stay packed
    "gptq": (gptq(4, 32), GPTQ, True),
    "gptq-8": (gptq(8, 32), {**GPTQ, "bits": 8}, True),
    "gptq-desc_act": (gptq(4, 32, scattered=True), {**GPTQ, "desc_act": True}, True),
    "gptq-column": (gptq(4, -1), {**GPTQ, "group_size": -1}, True),
    "gptq-v2": (gptq(4, 32, version=2), {**GPTQ, "checkpoint_format": "gptq_v2"}, True),
    "gptq-16": (gptq(4, 16), {**GPTQ, "group_size": 16}, False),
    "awq": (awq(32), AWQ, True),
    "fp8": (fp8(None), {"quant_method": "fp8"}, False),
    "fp8-blocks": (fp8(48, "weight_scale_inv"), {"quant_method": "fp8", "weight_block_size": [48, 48]}, False),
    "w4a16": (compressed(4, 32, packed=True), compressed_config("pack-quantized", **W4, group_size=32), True),
    "w4a16-zeros": (
        compressed(4, 32, packed=True, zeros=True),
        compressed_config("pack-quantized", **W4, group_size=32),
        True,
    ),
    "w8a8": (compressed(8, -1, packed=False), compressed_config("int-quantized", **W8), True),
    "fp8-channel": (
        fp8(None),
        compressed_config("float-quantized", num_bits=8, type="float", strategy="tensor"),
        False,
    ),
}


def saved(tmp_path: Path, name: str) -> tuple[Path, Any]:
    store, config, _ = CASES[name]
    model = random_model(LlamaConfig(**SHAPE))
    return save_stored(tmp_path / "model", model, store, config), model


FAST = ("gptq-desc_act", "awq", "w4a16-zeros", "fp8-blocks")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES]
)
def test_greedy_answers_equal_transformers(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = saved(tmp_path, name)
    packed: list[int] = []
    pack = CppGroupedLinear._pack
    monkeypatch.setattr(CppGroupedLinear, "_pack", lambda self, weight: (packed.append(1), pack(self, weight)))
    answers = run(load(folder, device="cpu"), PROMPTS)
    assert answers == [hf_greedy(model, prompt, 24) for prompt in PROMPTS]
    assert len(packed) == 4 * SHAPE["num_hidden_layers"] * CASES[name][2], "qkv, output, gate and up, down"


def test_without_kernels_weights_are_expanded(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "gptq-desc_act")
    answers = run(load(folder, device="cpu"), PROMPTS)
    assert answers == run(load(folder, device="cpu", cache_dir=None), PROMPTS)


@pytest.mark.slow
def test_packed_weights_are_shared_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = saved(tmp_path, "gptq-desc_act")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(EngineConfig(folder).cache_dir / "kernels")
    settings = {"device": "cpu", "cache_dir": cache, "shared_weights": True}
    answers = run(load(folder, **settings), PROMPTS)
    monkeypatch.setattr(CppGroupedLinear, "_pack", lambda *_: pytest.fail("the weights are packed already"))
    assert (
        run(load(folder, **settings), PROMPTS)
        == answers
        == run(load(folder, device="cpu", cache_dir=None), PROMPTS)
    )


@pytest.mark.parametrize("name", CASES)
def test_matrices_are_those_that_the_checkpoint_means(tmp_path: Path, name: str) -> None:
    """Floats to the last bit, and integers but for scales of 11 bits."""
    folder, model = saved(tmp_path, name)
    stored, tensors = parse_stored_format(read_json(folder / "config.json")), SafetensorsCheckpoint(folder)
    expected = dict(model.named_parameters())
    for matrix in ("self_attn.v_proj", "mlp.down_proj"):
        meant = expected[f"model.layers.1.{matrix}.weight"].detach()
        found = stored.matrix(tensors, f"model.layers.1.{matrix}", *meant.shape)
        packed = isinstance(found, GroupedWeight)
        values = found.dequantize() if isinstance(found, GroupedWeight) else found
        torch.testing.assert_close(values, meant, rtol=2**-11 if packed and not found.is_float else 0, atol=0)


@pytest.mark.parametrize("name", ["fp8", "fp8-blocks", "gptq-8", "awq"])
def test_triton_multiplies_by_the_matrix_as_it_is_stored(tmp_path: Path, name: str) -> None:
    """FP8 with blocks of 48 inputs is expanded: the kernels have groups of 32, 64 and 128."""
    folder, model = saved(tmp_path, name)
    kernels, tensors = TritonKernels(), SafetensorsCheckpoint(folder)
    reader = WeightReader(
        tensors, torch.float32, DEVICE, kernels, parse_stored_format(read_json(folder / "config.json"))
    )
    sizes = {"gate_proj": SHAPE["intermediate_size"], "up_proj": SHAPE["intermediate_size"]}
    layer = reader.linear("model.layers.0.mlp", sizes, SHAPE["hidden_size"])
    assert isinstance(layer, TritonGroupedLinear) == (name != "fp8-blocks")
    mlp = model.model.layers[0].mlp
    meant = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach()
    x = torch.randn(5, SHAPE["hidden_size"])
    torch.testing.assert_close(layer(x.to(DEVICE)).cpu(), x @ meant.T, rtol=2e-3, atol=2e-3)


def test_setting_quantizes_a_quantized_checkpoint_again(tmp_path: Path) -> None:
    folder, model = saved(tmp_path, "fp8")
    plain = model.save_pretrained(tmp_path / "plain") or tmp_path / "plain"
    byte_tokenizer().save_pretrained(plain)
    settings = {"device": "cpu", "quantization": "int8"}
    assert run(load(folder, **settings), PROMPTS) == run(load(plain, **settings), PROMPTS)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "hqq"}, r"quantized \(hqq\); supported: gptq, awq, fp8, compressed-tensors"),
        ({"bits": 4}, r"quantized \(None\)"),
        ([1], r"quantized \(None\)"),
        ({**GPTQ, "bits": 3}, "GPTQ with bits 3"),
        ({**GPTQ, "bits": 4.0}, "GPTQ with bits 4.0"),
        ({**GPTQ, "group_size": 0}, "group_size of GPTQ must be -1 or positive, got 0"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "gptq or gptq_v2, got 'marlin'"),
        ({**GPTQ, "dynamic": {"+:x": {}}}, "rules for single layers"),
        ({**AWQ, "bits": 8}, "AWQ with bits 8"),
        ({**AWQ, "version": "gemv"}, "must be gemm, got gemv"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "two positive integers"),
        (compressed_config("marlin-24", **W4), "format must be one of pack-quantized"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "one group of layers"),
        (compressed_config("pack-quantized", **{**W4, "num_bits": 2}), "integers of 2 bits"),
        (compressed_config("int-quantized", **{**W8, "num_bits": 8.0}), "integers of 8.0 bits"),
        (compressed_config("pack-quantized", **W4), "group_size must be positive, got None"),
        (compressed_config("float-quantized", num_bits=4, type="float", strategy="tensor"), "floats of 4 bits"),
    ],
)
def test_unsupported_format_is_refused_by_name(config: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_stored_format({"quantization_config": config})


@pytest.mark.parametrize(
    ("case", "tensor", "changed", "reason"),
    [
        ("gptq", "qweight", torch.zeros(8, 1).int(), r"has shape \(8, 1\)"),
        ("gptq", "qzeros", None, "no tensor model.layers.0.self_attn.q_proj.qzeros"),
        ("gptq", "g_idx", torch.full((64,), 5).int(), "must have values below 2"),
        ("awq", "qweight", torch.zeros(64, 8), "has dtype torch.float32; config.json implies torch.int32"),
        ("fp8", "weight", torch.full((64, 64), torch.nan).to(torch.float8_e4m3fn), "values that are not finite"),
        ("fp8", "weight_scale", torch.ones(3), r"has shape \(3,\); a scale, or one for each output"),
        ("w8a8", "weight", torch.zeros(64, 64), "has dtype torch.float32; config.json implies torch.int8"),
    ],
)
def test_broken_tensor_is_refused_by_name(
    tmp_path: Path, case: str, tensor: str, changed: torch.Tensor | None, reason: str
) -> None:
    folder, _ = saved(tmp_path, case)
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.0.self_attn.q_proj.{tensor}"
    if changed is None:
        del tensors[name]
    else:
        tensors[name] = changed
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=reason):
        load(folder, device="cpu")


@pytest.mark.parametrize("case", ["gptq", "awq", "fp8-blocks", "fp8-channel", "w4a16", "w8a8"])
def test_scales_that_are_not_finite_are_refused_before_memory_is_taken(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the scales of the last layer, no layer is made."""
    folder, _ = saved(tmp_path, case)
    tensors = load_file(folder / "model.safetensors")
    last = max(name for name in tensors if "down_proj" in name and "scale" in name and "input" not in name)
    tensors[last].view(-1)[-1] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    for method in ("linear", "grouped_linear"):
        monkeypatch.setattr(CppKernels, method, lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(ConfigError, match=rf"model\.safetensors: tensor {last} has values that are not finite"):
        load(folder, device="cpu")
