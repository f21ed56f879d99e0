"""One rank's part of an engine: its device, its threads, the room for its cache, and the loading of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from workers.engine.cache_sizing import CacheSize, size_cache, weight_bytes
from workers.engine.config import EngineConfig
from workers.engine.kernels import Kernels
from workers.engine.model_runner import ModelRunner, load_runner
from workers.engine.parallel.group import DistributedGroup
from workers.engine.parallel.shard import PARAM, Shard
from workers.engine.parallel.shard_reader import ShardReader


class RankPart:
    """Part of one rank.

    Args:
        config: of the whole engine.
    """

    def __init__(self, config: EngineConfig, shard: Shard, dtype: torch.dtype) -> None:
        self._shard = shard
        self._dtype = dtype
        self.device = _device_of(config, shard.rank)
        self._config = replace(config, kv_cache_gib=config.kv_cache_gib / shard.size)
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, (config.threads or torch.get_num_threads()) // shard.size))

    def size(self) -> CacheSize:
        """Return the cache that this rank has room for. Raises ConfigError."""
        return size_cache(self._config, self._shard.config, self._dtype, self.device, self._weight_bytes)

    def load(
        self,
        size: CacheSize,
        kernels: Kernels,
        group: DistributedGroup,
        progress: StartupProgress,
        make_runner: Callable[..., ModelRunner] = ModelRunner,
    ) -> ModelRunner:
        """Load the weights and make the cache. Raises ConfigError."""
        return load_runner(
            self._config,
            self._shard.config,
            size,
            kernels=kernels,
            dtype=self._dtype,
            device=self.device,
            progress=progress,
            make_reader=partial(ShardReader, shard=self._shard, group=group),
            make_runner=make_runner,
            part=self._shard.name,
        )

    def _weight_bytes(self, folder: Path, dtype: torch.dtype) -> int:
        """Return the size of the part's weights: its share of all, but the whole embedding."""
        model = self._shard.model
        embedding = model.vocab_size * model.hidden_size * dtype.itemsize
        return embedding + max(0, weight_bytes(folder, dtype) - embedding) // self._shard.size


def _device_of(config: EngineConfig, rank: int) -> torch.device:
    """Return the device of a rank: a GPU of its own, counted from the one that the settings name."""
    first = config.torch_device()
    if first.type == "cpu":
        return first
    index = (first.index or 0) + rank
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"{PARAM} {config.tensor_parallel_size} needs as many GPUs from {first} on; this machine has "
            f"{torch.cuda.device_count()}",
            param=PARAM,
        )
    return torch.device("cuda", index)
