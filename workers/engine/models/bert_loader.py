"""Loading of an embedding model's folder: config.json, safetensors, and the files of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.kernels import Kernels
from workers.engine.models.bert import Bert, BertConfig, Pooling, build_bert
from workers.engine.models.checkpoint import Checkpoint, read_json

ARCHITECTURES = ("BertModel",)


def is_embedding_model(folder: Path) -> bool:
    """Return whether the model in `folder` returns vectors, not text. Raises ConfigError."""
    return any(name in ARCHITECTURES for name in read_json(folder / "config.json").get("architectures") or ())


def read_bert_config(folder: Path) -> BertConfig:
    """Read config.json. Raises ConfigError."""
    return BertConfig.parse(read_json(folder / "config.json"))


def read_pooling(folder: Path) -> Pooling:
    """Return how token vectors are pooled; the default is their mean. Raises ConfigError."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    modes = {name for name, value in read_json(path).items() if name.startswith("pooling_mode_") and value is True}
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    raise ConfigError(
        f"{path}: the pooling mode must be mean_tokens or cls_token, got {', '.join(sorted(modes))}", param="model"
    )


def read_max_input_tokens(folder: Path, config: BertConfig, wanted: int | None) -> int:
    """Return the most tokens of one input: what the model was tuned for, or `wanted` if that is less."""
    path = folder / "sentence_bert_config.json"
    tuned = read_json(path).get("max_seq_length") if path.is_file() else None
    return min(tuned or config.positions, config.positions, wanted or config.positions)


def load_bert(folder: Path, config: BertConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device) -> Bert:
    """Load the weights. Raises ConfigError where tensors are missing or have another shape."""
    checkpoint = Checkpoint(folder)
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in checkpoint else ""

    def tensor(name: str, *shape: int) -> Tensor:
        found = checkpoint.read(prefix + name)
        if tuple(found.shape) != shape:
            raise ConfigError(
                f"{folder}: tensor {name} has shape {tuple(found.shape)}; config.json implies {shape}",
                param="model",
            )
        return found.to(device, dtype)

    return build_bert(config, tensor, kernels.linear)
