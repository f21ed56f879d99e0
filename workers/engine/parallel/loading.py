"""Loading of an engine's model: in this process alone, or with the other ranks."""

from __future__ import annotations

from typing import Protocol

import torch

from shared.models.startup_progress import StartupProgress
from workers.engine.cache_sizing import CacheSize, size_cache
from workers.engine.config import EngineConfig
from workers.engine.kernels import Kernels
from workers.engine.model_runner import ModelRunner, load_runner
from workers.engine.models.decoder import DecoderConfig


class Loading(Protocol):
    """Loading of one model."""

    def load(self, kernels: Kernels, progress: StartupProgress) -> tuple[ModelRunner, CacheSize]:
        """Load the model and make its cache. Raises ConfigError."""


class SoleLoading:
    """Loading in this process; see `Loading`. Raises ConfigError if the cache cannot be made."""

    def __init__(
        self, config: EngineConfig, model: DecoderConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config, self._model, self._dtype, self._device = config, model, dtype, device
        self._size = size_cache(config, model, dtype, device)

    def load(self, kernels: Kernels, progress: StartupProgress) -> tuple[ModelRunner, CacheSize]:
        runner = load_runner(
            self._config,
            self._model,
            self._size,
            kernels=kernels,
            dtype=self._dtype,
            device=self._device,
            progress=progress,
        )
        return runner, self._size


def begin_loading(config: EngineConfig, model: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Loading:
    """Return the loading of a model; if it has several ranks, they have been started. Raises ConfigError."""
    if config.tensor_parallel_size == 1:
        return SoleLoading(config, model, dtype, device)
    from workers.engine.parallel.team_loading import TeamLoading  # noqa: PLC0415  torch.distributed

    return TeamLoading(config, model, dtype, device)
