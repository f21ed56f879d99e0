"""Ranks of tensor parallelism as threads of the test's process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tests.support.paged_steps import make_step
from tests.support.waiting import LIMIT_S
from workers.engine.cache_sizing import CacheSize
from workers.engine.config import EngineConfig
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import ModelRunner
from workers.engine.models.loader import load_model, read_model_config
from workers.engine.parallel.shard import Shard, divisible_model
from workers.engine.parallel.shard_reader import ShardReader

BLOCK, BLOCKS = 4, 32


class ThreadRanks:
    """Parts that ranks in threads exchange."""

    def __init__(self, size: int) -> None:
        self._parts: list[Tensor] = [torch.empty(0)] * size
        self._barrier = threading.Barrier(size)

    def exchange(self, rank: int, part: Tensor) -> list[Tensor]:
        self._parts[rank] = part.clone()
        self._barrier.wait(LIMIT_S)
        found = list(self._parts)
        self._barrier.wait(LIMIT_S)
        return found


class ThreadRank:
    """One rank; see `RankGroup`."""

    def __init__(self, ranks: ThreadRanks, rank: int) -> None:
        self._ranks, self._rank = ranks, rank

    def sum(self, part: Tensor) -> Tensor:
        return torch.stack(self._ranks.exchange(self._rank, part)).sum(0)

    def join(self, part: Tensor, width: int) -> Tensor:
        found = torch.cat(self._ranks.exchange(self._rank, part), 1)
        assert found.shape[1] == width
        return part if self._rank else found


def logits_of_ranks(folder: Path, size: int, prompt: list[int], quantization: str = "none") -> Tensor:
    """Return the logits of all rows of a prompt, computed by `size` ranks."""
    config = EngineConfig(folder, device="cpu", quantization=quantization)  # type: ignore[arg-type]  # of a test's table
    whole = divisible_model(read_model_config(folder), size)
    torch.manual_seed(0)  # of the order of blocks
    inputs = make_step([(0, len(prompt))], BLOCK, BLOCKS)
    step = replace(inputs, tokens=torch.tensor(prompt), sample_rows=torch.arange(len(prompt)))
    ranks = ThreadRanks(size)
    runners = []
    for rank in range(size):
        shard = Shard(rank, size, whole)
        model = load_model(
            folder,
            shard.config,
            choose_kernels(config, torch.device("cpu"), torch.float32),
            dtype=torch.float32,
            device=torch.device("cpu"),
            max_model_len=BLOCK * BLOCKS,
            progress=lambda _: None,
            make_reader=partial(ShardReader, shard=shard, group=ThreadRank(ranks, rank)),
        )
        runners.append(ModelRunner(model, CacheSize(BLOCKS, BLOCK, BLOCK * BLOCKS), max_num_seqs=1))
    with ThreadPoolExecutor(size) as threads:
        found, *_ = threads.map(lambda runner: runner.compute((), step), runners)
    assert found is not None
    return found
