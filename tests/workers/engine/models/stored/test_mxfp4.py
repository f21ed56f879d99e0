"""Experts in MXFP4 compute what transformers computes with the same weights expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from shared.errors import ConfigError
from tests.support.checkpoints import SHAPE, edit_config, hf_greedy, hf_model, random_prompts, save_checkpoint
from tests.support.engine_driver import load, run

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 9}
PROMPTS = random_prompts(5)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """Return a checkpoint in MXFP4, and transformers' answers to PROMPTS."""
    folder = save_checkpoint(tmp_path, GptOssConfig(**SHAPE | SIZES, **EXPERTS))
    tensors = load_file(folder / "model.safetensors")
    stored: dict[str, Tensor] = {}
    for name, expanded in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = expanded
            continue
        experts, inputs, outputs = expanded.shape
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(122, 126, blocks.shape[:3], dtype=torch.uint8)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = hf_model(folder)
    answers = [hf_greedy(model, prompt, 24) for prompt in PROMPTS]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return folder, answers


@pytest.mark.parametrize("settings", [{}, {"cache_dir": None}], ids=["packed", "expanded"])
def test_greedy_answers_equal_transformers(packed: tuple[Path, list[list[int]]], settings: dict[str, None]) -> None:
    folder, answers = packed
    assert run(load(folder, device="cpu", **settings), PROMPTS) == answers


def test_scale_that_is_not_finite_is_refused(packed: tuple[Path, list[list[int]]]) -> None:
    folder, _ = packed
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name][2, 3, 0] = 255
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"tensor {name} has values that are not finite"):
        load(folder, device="cpu")
