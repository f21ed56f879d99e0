"""Loading of an encoder's folder: config.json, safetensors, and the files of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.kernels import Kernels
from workers.engine.models.bert import Bert, build_bert
from workers.engine.models.checkpoint import SafetensorsCheckpoint, read_json
from workers.engine.models.encoder_families import ARCHITECTURES, EncoderConfig
from workers.engine.models.encoder_heads import Activation, ClassifierHead, Dense, EmbeddingHead, Head, Pooling
from workers.engine.models.stored.interface import refuse_infinite

MAX_LABELS, MAX_LABEL_CHARS = 1_000, 1_000
# that sentence-transformers may name in a cross-encoder's config.json; None: the one for its number of labels
ACTIVATIONS: Mapping[str, Activation | None] = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity(),
    "torch.nn.modules.activation.Sigmoid": None,
    "torch.nn.modules.activation.Softmax": None,
    "torch.nn.modules.activation.Tanh": torch.tanh,
}


def is_encoder(folder: Path) -> bool:
    """Return whether the model in `folder` returns vectors or classes, not text. Raises ConfigError."""
    return any(name in ARCHITECTURES for name in read_json(folder / "config.json").get("architectures") or ())


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


def read_max_input_tokens(folder: Path, config: EncoderConfig, wanted: int | None) -> int:
    """Return the most tokens of one input: what the model was tuned for, or `wanted` if that is less."""
    path = folder / "sentence_bert_config.json"
    tuned = read_json(path).get("max_seq_length") if path.is_file() else None
    return min(tuned or config.max_tokens, config.max_tokens, wanted or config.max_tokens)


def read_labels(raw: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes, in order. Raises ConfigError."""
    named = raw.get("id2label")
    if named is None:
        named = {str(number): f"LABEL_{number}" for number in range(int(raw.get("num_labels") or 2))}
    labels = [named.get(str(number)) for number in range(len(named))] if isinstance(named, dict) else []
    if not 0 < len(labels) <= MAX_LABELS or not all(
        isinstance(label, str) and len(label) <= MAX_LABEL_CHARS for label in labels
    ):
        raise ConfigError(
            f"config.json: id2label must name 1 to {MAX_LABELS} classes, numbered from 0, in at most "
            f"{MAX_LABEL_CHARS} characters each",
            param="model",
        )
    return tuple(map(str, labels))


def read_activation(raw: dict[str, Any], num_labels: int) -> Activation:
    """Return the function from scores to what clients get, as vLLM chooses it. Raises ConfigError."""
    probabilities = torch.sigmoid if num_labels == 1 else _softmax
    match raw.get("problem_type"):
        case "regression":
            return torch.nn.Identity()
        case "multi_label_classification":
            return torch.sigmoid
        case "single_label_classification":
            return probabilities
    of_package = raw.get("sentence_transformers")
    name = of_package.get("activation_fn") if isinstance(of_package, dict) else None
    name = name or raw.get("sbert_ce_default_activation_function")
    if name is None:
        return probabilities
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"config.json: activation_fn must be one of {', '.join(ACTIVATIONS)}, got {name!r}", param="model"
        )
    return ACTIVATIONS[name] or probabilities


def load_encoder(
    folder: Path, config: EncoderConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device
) -> tuple[Bert, Head]:
    """Load the weights. Raises ConfigError where tensors are missing or have another shape."""
    checkpoint = SafetensorsCheckpoint(folder)
    prefix = config.family.prefix
    own = prefix if f"{prefix}embeddings.word_embeddings.weight" in checkpoint else ""

    def tensor(name: str, *shape: int) -> Tensor:
        found = checkpoint.read(name)
        if tuple(found.shape) != shape:
            raise ConfigError(
                f"{checkpoint.file(name)}: tensor {name} has shape {tuple(found.shape)}; "
                f"config.json implies {shape}",
                param="model",
            )
        refuse_infinite(checkpoint.file(name), name, found)
        return found.to(device, dtype)

    model = build_bert(config, lambda name, *shape: tensor(own + name, *shape), kernels.linear)
    return model, _load_head(folder, config, lambda name, *shape: tensor(name, *shape).float())


def _load_head(folder: Path, config: EncoderConfig, tensor: Callable[..., Tensor]) -> Head:
    hidden = config.hidden
    if config.head == "embedding":
        return EmbeddingHead(read_pooling(folder), hidden)
    raw = read_json(folder / "config.json")
    labels = read_labels(raw)
    per_token = config.head == "token classifier"

    def dense(name: str, out: int, then: Activation) -> Dense:
        return Dense(tensor(f"{name}.weight", out, hidden), tensor(f"{name}.bias", out), then)

    *inner, last = ("classifier",) if per_token else config.family.classifier
    squash = torch.tanh if config.family.squash == "tanh" else torch.relu
    layers = (*(dense(name, hidden, squash) for name in inner), dense(last, len(labels), torch.nn.Identity()))
    return ClassifierHead(labels, layers, read_activation(raw, len(labels)), per_token)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)
