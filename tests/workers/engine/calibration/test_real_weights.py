"""Quality of int4 on real weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from headrace.bench.engine.perplexity_texts import licence_text
from tests.support.permuted import permute_channels
from workers.engine.calibration import formats
from workers.engine.calibration import load as calibration
from workers.engine.config import EngineConfig
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.loader import read_model_config
from workers.engine.quantization.grouped_weight import quantize_groups
from workers.engine.quantization.join import join
from workers.engine.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
TOKENS = 1536
MOST = {"output": 0.2, "gate and up": 0.55}  # parts of the error of the nearest integers


@pytest.fixture
def first_layer(smollm2: Path, tmp_path: Path) -> Path:
    """SmolLM2's first layer, with channels permuted, since the weights were rounded in groups before."""
    config = json.loads((smollm2 / "config.json").read_text()) | {"num_hidden_layers": 1}
    with safe_open(smollm2 / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if "layers." not in name or "layers.0." in name]  # noqa: SIM118  no mapping
        tensors = permute_channels({name: file.get_tensor(name) for name in names}, config)
    folder = tmp_path / "first"
    folder.mkdir()
    for path in smollm2.glob("*token*"):
        shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_layers_lose_less_than_with_the_nearest_integers(
    first_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another text than the calibration's, each layer's outputs are closer."""
    monkeypatch.setattr(calibration, "MAX_TOKENS", TOKENS)
    config = EngineConfig(first_layer)
    tokenizer, kernels = Tokenizer(first_layer), choose_kernels(config, CPU, torch.float32)
    model_config = read_model_config(first_layer)
    weights = calibration._calibrate(kernels, first_layer, model_config, tokenizer)

    seen: list[tuple[Tensor, Tensor]] = []  # weight and inputs of each layer
    compute = formats.RoundingLinear.__call__

    def record(layer: formats.RoundingLinear, x: Tensor) -> Tensor:
        seen.append((join(layer._weights), x.clone()))
        return compute(layer, x)

    text = first_layer / "other.txt"
    text.write_text(licence_text()[:8000], encoding="utf-8")
    monkeypatch.setattr(formats.RoundingLinear, "__call__", record)
    monkeypatch.setattr(formats.RoundingLinear, "begin", lambda layer: None)
    monkeypatch.setattr(calibration, "TEXT", text)
    calibration._calibrate(kernels, first_layer, model_config, tokenizer)
    shares = []
    for (weight, x), found in zip(seen, weights, strict=True):
        nearest, expected = quantize_groups(weight, 4, 16, narrow=True), x @ weight.T
        errors = [
            ((x @ each.dequantize().T - expected).square().sum(-1) / expected.square().sum(-1)).mean()
            for each in (found, nearest)
        ]
        shares.append(float(errors[0] / errors[1]))
    for share, (name, most) in zip(shares, MOST.items(), strict=True):
        assert share < most, name
