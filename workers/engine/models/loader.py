"""Loading of a checkpoint folder, by the architecture that its config.json names.

A checkpoint that lacks a tensor, or has one that its architecture does not use, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shared.errors import ConfigError
from shared.models.weight_files import GGUF_NAME, weight_files
from workers.engine.kernels import Kernels
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.models.checkpoint import Checkpoint, SafetensorsCheckpoint, WeightReader, read_json
from workers.engine.models.decoder import Decoder, DecoderConfig, parse_token_ids
from workers.engine.models.gguf.checkpoint import GgufCheckpoint, GgufMatrices
from workers.engine.models.registry import ARCHITECTURES
from workers.engine.models.stored.formats import parse_stored_format
from workers.engine.models.stored.interface import StoredFormat, refuse_infinite

if TYPE_CHECKING:  # adapters are off by default
    from workers.engine.lora.sites import AdapterSites

Progress = Callable[[float], None]


def read_model_config(folder: Path) -> DecoderConfig:
    """Read config.json. Raises ConfigError where it is missing or not supported."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", param="model")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json; a model folder must have one", param="model")
    raw = read_json(folder / "config.json")
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"config.json: architectures must be a list of names, got {names!r:.80}", param="model")
    for name in names:
        if name in ARCHITECTURES:
            config: DecoderConfig = ARCHITECTURES[name].parse_config(name, raw)
            return config
    from workers.engine.models.transformers_config import read_transformers_config  # noqa: PLC0415  takes 2 s

    return read_transformers_config(folder, raw)


def read_eos_token_ids(folder: Path, configured: Iterable[int]) -> frozenset[int]:
    """Return the end-of-text tokens of generation_config.json, or else those `configured` in config.json."""
    path = folder / "generation_config.json"
    found = parse_token_ids(read_json(path).get("eos_token_id")) if path.is_file() else ()
    return frozenset(found or configured)


def read_ahead(folder: Path) -> None:
    """Have the system read the weights into its page cache while other parts are prepared."""
    for path in weight_files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the files of a folder's weights. Raises ConfigError for broken files."""
    gguf = folder / GGUF_NAME
    return GgufCheckpoint(gguf) if gguf.is_file() else SafetensorsCheckpoint(folder)


def _stored_format(folder: Path) -> StoredFormat:
    if (folder / GGUF_NAME).is_file():
        return GgufMatrices()
    return parse_stored_format(read_json(folder / "config.json"))


def load_model(
    folder: Path,
    config: DecoderConfig,
    kernels: Kernels,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    progress: Progress,
    make_reader: Callable[..., WeightReader] = WeightReader,
    sites: AdapterSites | None = None,
) -> Decoder:
    """Load a model. Raises ConfigError where tensors are missing, left over, or not of the shape in config.json.

    For Headrace's own architectures, that and scales that are not finite are found out before memory is taken.

    Args:
        max_model_len: most tokens of a sequence.
        progress: called with the share that is loaded, from 0 to 1.
        make_reader: has the parameters of `WeightReader`, for a reader of a part of the model.
        sites: takes note of the layers that adapters can change.
    """
    architecture = ARCHITECTURES.get(config.architecture)
    if architecture is None:
        if sites is not None:
            raise ConfigError(
                f"lora_dir is set, and adapters are not supported for the architecture {config.architecture}",
                param="lora_dir",
            )
        from workers.engine.models.transformers_config import load_transformers  # noqa: PLC0415  takes 2 s

        return load_transformers(folder, config, dtype=dtype, device=device, kernels=kernels)
    checkpoint, stored = open_checkpoint(folder), _stored_format(folder)
    plain = TorchKernels()
    rehearsed = make_reader(checkpoint.outline(), dtype, torch.device("meta"), plain, stored)
    architecture.load(rehearsed, config, 1, plain, lambda _: None)
    for name, scales in checkpoint.scales(stored.scales):
        refuse_infinite(checkpoint.file(name), name, scales)
    sited = {} if sites is None else {"sites": sites}
    reader = make_reader(checkpoint, dtype, device, kernels, stored, **sited)
    return architecture.load(reader, config, max_model_len, kernels, progress)
