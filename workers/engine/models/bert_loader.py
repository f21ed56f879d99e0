"""Reads the folder of an embedding model: config.json, safetensors, and what sentence-transformers adds.

It knows nothing of requests.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.kernels import Kernels
from workers.engine.models.bert import Bert, BertConfig, Pooling, build
from workers.engine.models.checkpoint import Checkpoint, read_json

ARCHITECTURES = ("BertModel",)


def embeds(folder: Path) -> bool:
    """Whether the model in `folder` gives vectors, not text. Raises ConfigError."""
    return any(name in ARCHITECTURES for name in read_json(folder / "config.json").get("architectures") or ())


def read_config(folder: Path) -> BertConfig:
    """Raises ConfigError."""
    return BertConfig.parse(read_json(folder / "config.json"))


def read_pooling(folder: Path) -> Pooling:
    """How an input's vector is made from its tokens'; the mean where nothing is said. Raises ConfigError."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    modes = {name for name, value in read_json(path).items() if name.startswith("pooling_mode_") and value is True}
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    raise ConfigError(f"{path} asks for a pooling that is not supported: {', '.join(sorted(modes))}", param="model")


def read_length(folder: Path, config: BertConfig, wanted: int | None) -> int:
    """Most tokens of one input: what the model was tuned for, or fewer if `wanted`."""
    path = folder / "sentence_bert_config.json"
    tuned = read_json(path).get("max_seq_length") if path.is_file() else None
    return min(tuned or config.positions, config.positions, wanted or config.positions)


def load_bert(folder: Path, config: BertConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device) -> Bert:
    """Raises ConfigError where tensors are missing or of another shape."""
    checkpoint = Checkpoint(folder)
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in checkpoint else ""

    def tensor(name: str, *shape: int) -> Tensor:
        found = checkpoint.take(prefix + name)
        if tuple(found.shape) != shape:
            raise ConfigError(f"{folder}: {name} has shape {tuple(found.shape)}, not {shape}", param="model")
        return found.to(device, dtype)

    return build(config, tensor, kernels.linear)
