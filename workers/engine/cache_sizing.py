"""Sizes of the KV cache and of the longest sequence, from the settings, the model and the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.errors import ConfigError
from shared.models.weight_files import loaded_bytes
from workers.engine.config import EngineConfig
from workers.engine.models.decoder import DecoderConfig


@dataclass(frozen=True)
class CacheSize:
    """Number and size of KV blocks, and the most tokens of one sequence."""

    num_blocks: int
    block_size: int
    max_model_len: int

    @property
    def full_sequences(self) -> float:
        """Number of sequences of full length that fit at once."""
        return self.num_blocks * self.block_size / self.max_model_len


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the size of the checkpoint's weights in `dtype`."""
    return loaded_bytes(folder, dtype.itemsize)


def size_cache(
    config: EngineConfig,
    model: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: Callable[[Path, torch.dtype], int] = weight_bytes,
) -> CacheSize:
    """Size the cache. Raises ConfigError where the settings ask for more than the model or the memory allows.

    Args:
        weights: returns the bytes of the weights that this process has on the device.
    """
    wanted = _context_length(config, model)
    if config.num_kv_blocks is not None:
        num_blocks = config.num_kv_blocks
    else:
        block_bytes = (
            2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize * config.block_size
        )
        max_blocks = config.max_num_seqs * -(-wanted // config.block_size)
        num_blocks = min(_kv_bytes(config, dtype, device, weights) // block_bytes, max_blocks)
    room = num_blocks * config.block_size
    param = "kv_cache_gib" if device.type == "cpu" else "gpu_memory_utilization"
    if config.max_model_len is not None and room < config.max_model_len:
        raise ConfigError(
            f"the KV cache holds {room} tokens, fewer than max_model_len {config.max_model_len}", param=param
        )
    if room < 2:
        raise ConfigError(f"{param} is too small for a single KV block", param=param)
    return CacheSize(num_blocks, config.block_size, min(wanted, room))


def _context_length(config: EngineConfig, model: DecoderConfig) -> int:
    limit = model.length_limit()
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len must be at most {limit} for this checkpoint, got {config.max_model_len}",
            param="max_model_len",
        )
    if config.max_model_len is None and limit < model.max_position_embeddings:
        raise ConfigError(
            f"the checkpoint uses a sliding window, which the engine supports only up to its {limit} tokens; "
            f"set max_model_len to at most {limit}",
            param="max_model_len",
        )
    return config.max_model_len or limit


def _kv_bytes(
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: Callable[[Path, torch.dtype], int],
) -> int:
    if device.type != "cuda":
        return int(config.kv_cache_gib * 2**30)
    free, total = torch.cuda.mem_get_info(device)
    return bytes_for_cache(total, free, weights(config.model, dtype), config.gpu_memory_utilization)


def bytes_for_cache(total: int, free: int, weights: int, utilization: float) -> int:
    """Return the bytes for KV blocks on a device of `total` bytes, `free` of them before the weights are loaded.

    Raises ConfigError if the weights leave no room.
    """
    left = min(int(total * utilization), free) - weights
    if left <= 0:
        raise ConfigError(
            f"the weights take {weights / 2**30:.1f} GiB, which leaves no room for a KV cache: "
            f"gpu_memory_utilization is {utilization} of {total / 2**30:.1f} GiB, with {free / 2**30:.1f} GiB free",
            param="gpu_memory_utilization",
        )
    return left
