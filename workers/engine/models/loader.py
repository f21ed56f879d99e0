"""A checkpoint folder, by the model that its config.json names.

A model is loaded right or not at all: what does not fit, or is left over, is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from shared.errors import ConfigError
from shared.protocol import PROTOCOL_VERSION
from workers.engine.kernels import Kernels
from workers.engine.models.checkpoint import Checkpoint, WeightReader, read_json
from workers.engine.models.config import ARCHITECTURES, ModelConfig, token_ids
from workers.engine.models.decoder import Decoder, DecoderConfig
from workers.engine.models.llama import load_llama

HEAD = 2**20  # bytes of a file that its fingerprint reads
Progress = Callable[[float], None]


def read_model_config(folder: Path) -> DecoderConfig:
    """Raises ConfigError for a folder without a config.json, or with one that is not supported."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", param="model")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json: is it a model folder?", param="model")
    raw = read_json(folder / "config.json")
    if set(raw.get("architectures") or ()) & set(ARCHITECTURES):
        return ModelConfig.parse(raw)
    from workers.engine.models.transformers_config import read_transformers_config  # noqa: PLC0415  takes 2 s

    return read_transformers_config(folder, raw)


def read_eos_token_ids(folder: Path, config: DecoderConfig) -> frozenset[int]:
    """generation_config.json's end-of-text tokens, else config.json's."""
    path = folder / "generation_config.json"
    found = token_ids(read_json(path).get("eos_token_id")) if path.is_file() else ()
    return frozenset(found or config.eos_token_ids)


def fingerprint(folder: Path, device: torch.device, *parts: str) -> str:
    """The same for the same weights, torch, kind of device and `parts`: a hash of config.json and of each file's
    size and head.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    digest = hashlib.blake2b(repr((PROTOCOL_VERSION, torch.__version__, kind, parts)).encode(), digest_size=6)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(repr((path.name, path.stat().st_size)).encode() + file.read(HEAD))
    return f"fp_{digest.hexdigest()}"


def load_model(
    folder: Path,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    kernels: Kernels,
    progress: Progress,
) -> Decoder:
    """Raises ConfigError where tensors are missing, left over or of another shape than config.json says."""
    if not isinstance(config, ModelConfig):
        from workers.engine.models.transformers_config import load_transformers  # noqa: PLC0415  takes 2 s

        return load_transformers(folder, config, dtype=dtype, device=device, kernels=kernels)
    reader = WeightReader(Checkpoint(folder), dtype, device, kernels)
    return load_llama(reader, config, max_model_len, kernels, progress)
