"""Loading of a model with several ranks, on rank 0."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import torch

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from workers.engine.cache_sizing import CacheSize
from workers.engine.config import EngineConfig
from workers.engine.interface import EngineLost
from workers.engine.kernels import Kernels
from workers.engine.model_runner import ModelRunner
from workers.engine.models.decoder import DecoderConfig
from workers.engine.parallel.group import DistributedGroup
from workers.engine.parallel.meeting import meeting_place
from workers.engine.parallel.messages import Capacity, Load, Loaded, Start
from workers.engine.parallel.part import RankPart
from workers.engine.parallel.shard import PARAM, Shard, divisible_model
from workers.engine.parallel.team import Team, TeamRunner

_log = structlog.get_logger(__name__)


NEEDED = (  # fields of `EngineConfig` that say what a rank loads; scheduling and text are rank 0's alone
    *("model", "device", "dtype", "quantization", "batch_invariant", "tensor_parallel_size", "threads"),
    *("max_model_len", "max_num_seqs", "block_size", "num_kv_blocks", "kv_cache_gib", "gpu_memory_utilization"),
    *("cache_dir", "shared_weights"),
)


class TeamLoading:
    """Loading with other ranks, which the constructor starts; see `Loading`. Raises ConfigError and EngineLost."""

    def __init__(
        self, config: EngineConfig, model: DecoderConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        for name, is_set in (("kv_tier", config.tier.kind != "off"), ("lora_dir", config.lora_dir is not None)):
            if is_set:
                raise ConfigError(f"{name} is not supported with {PARAM} above 1", param=name)
        self._ranks = config.tensor_parallel_size
        shard = Shard(0, self._ranks, divisible_model(model, self._ranks))
        if device.type == "cuda" and ":" not in config.device:
            config = replace(config, device=f"cuda:{torch.cuda.current_device()}")
        values = {name: getattr(config, name) for name in NEEDED}
        given = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        self._team = Team(
            [
                Start(rank=rank, size=self._ranks, config=given, dtype=str(dtype).removeprefix("torch."))
                for rank in range(1, self._ranks)
            ]
        )
        self._part = RankPart(config, shard, dtype)
        self._size = self._part.size()

    def load(self, kernels: Kernels, progress: StartupProgress) -> tuple[ModelRunner, CacheSize]:
        try:
            return self._load(kernels, progress)
        except BaseException:
            self._team.end()
            raise

    def _load(self, kernels: Kernels, progress: StartupProgress) -> tuple[ModelRunner, CacheSize]:
        blocks = min([self._size.num_blocks, *(each.num_blocks for each in self._team.ask(Capacity))])
        length = min(self._size.max_model_len, blocks * self._size.block_size)
        size = replace(self._size, num_blocks=blocks, max_model_len=length)
        with meeting_place() as store:
            self._team.tell(Load(num_blocks=blocks, max_model_len=length, store=str(store)))
            try:
                group = DistributedGroup(0, self._ranks, str(store), self._part.device)
            except RuntimeError as error:
                raise EngineLost(f"the ranks cannot reach each other: {error}") from error
        runner = self._part.load(size, kernels, group, progress, partial(TeamRunner, self._team, group))
        self._team.ask(Loaded)
        _log.info("ranks_ready", pids=self._team.pids, device=str(self._part.device))
        return runner, size
