"""Random LoRA adapters of tiny checkpoints as PEFT saves them, and transformers' models with them merged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.checkpoints import hf_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE_MLP = ("gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def save_adapter(
    folder: Path,
    checkpoint: Path,
    targets: Sequence[str] = ATTENTION + DENSE_MLP,
    *,
    rank: int = 4,
    seed: int = 1,
    **config: Any,
) -> Path:
    """Save an adapter of the matrices with these last parts of names; `config` replaces fields of its config."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in matrices(checkpoint, targets).items():
        down = torch.randn(rank, weight.shape[1], generator=generator) * 0.3
        up = torch.randn(weight.shape[0], rank, generator=generator) * 0.3
        tensors |= {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": up}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    return folder


def edit_adapter(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors of an adapter; None removes one. A name is the end of the tensor's, with __ for each dot."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for end, value in changes.items():
        name = next((name for name in tensors if name.endswith(end.replace("__", "."))), end.replace("__", "."))
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, path)


def matrices(checkpoint: Path, targets: Sequence[str]) -> dict[str, Tensor]:
    """Return the matrices of a checkpoint with these last parts of their names."""
    tensors = {name: each for path in checkpoint.glob("*.safetensors") for name, each in load_file(path).items()}
    names = (name.removesuffix(".weight") for name in sorted(tensors) if name.endswith(".weight"))
    return {name: tensors[f"{name}.weight"] for name in names if name.rpartition(".")[2] in targets}


def merged(checkpoint: Path, adapter: Path) -> PreTrainedModel:
    """Return transformers' model with W + scale * B A in place of each W."""
    model = hf_model(checkpoint)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." not in name:
                continue
            module, up = name.removeprefix(PREFIX).partition(".lora_A.")[0], tensors[name.replace("_A.", "_B.")]
            last = module.rpartition(".")[2]
            alpha = config.get("alpha_pattern", {}).get(last, config["lora_alpha"])
            scale = alpha / (math.sqrt(len(down)) if config.get("use_rslora") else len(down))
            model.get_submodule(module).weight += scale * (up @ down)
    return model
