"""Program of a rank other than 0: `python -m workers.engine.parallel.rank SOCKET PARENT`.

SOCKET is the number of an inherited file descriptor, PARENT the id of rank 0's process. The rank computes the steps
that rank 0 sends, until rank 0 closes the socket or ends.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any, TypeVar

import structlog

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from shared.runtime.processes import die_with_parent
from workers.engine.cache_sizing import CacheSize
from workers.engine.config import DTYPES, EngineConfig
from workers.engine.execution.device import on_device
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import ModelRunner
from workers.engine.models.loader import read_model_config
from workers.engine.parallel.group import DistributedGroup
from workers.engine.parallel.messages import Capacity, Channel, Load, Loaded, Refused, Start
from workers.engine.parallel.part import RankPart
from workers.engine.parallel.shard import Shard, divisible_model
from workers.engine.parallel.step_message import Step

FOLDERS = ("model", "cache_dir")  # fields of `EngineConfig`

Message = TypeVar("Message")


def main() -> None:
    die_with_parent(int(sys.argv[2]), signal.SIGKILL)  # which ends a suspended process too
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 finishes its requests before it ends
        signal.signal(number, signal.SIG_IGN)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # rank 0 logs the rest
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        channel = Channel(connection)
        try:
            _serve(channel)
        except (EOFError, ConnectionError):
            return


def _serve(channel: Channel) -> None:
    start = _receive(channel, Start)
    try:
        runner, group = _load(channel, start)
    except ConfigError as error:
        channel.send(Refused(f"rank {start.rank}: {error.message}", error.param))
        return
    channel.send(Loaded())
    while True:
        step = Step.decode(channel.receive_bytes())
        group.begin_step()
        runner.compute(step.copies, step.inputs, group.stops)


def _load(channel: Channel, start: Start) -> tuple[ModelRunner, DistributedGroup]:
    fields: dict[str, Any] = start.config
    folders = {name: Path(fields[name]) for name in FOLDERS if fields[name] is not None}
    config = EngineConfig(**{**fields, **folders})
    dtype = DTYPES[start.dtype]
    shard = Shard(start.rank, start.size, divisible_model(read_model_config(config.model), start.size))
    part = RankPart(config, shard, dtype)
    with on_device(part.device):
        channel.send(Capacity(part.size().num_blocks))
        kernels = choose_kernels(config, part.device, dtype)
        load = _receive(channel, Load)
        size = CacheSize(load.num_blocks, config.block_size, load.max_model_len)
        group = DistributedGroup(start.rank, start.size, load.store, part.device)
        return part.load(size, kernels, group, StartupProgress()), group


def _receive(channel: Channel, kind: type[Message]) -> Message:
    found = channel.receive(kind)
    assert not isinstance(found, Refused)  # rank 0 closes the channel instead
    return found


if __name__ == "__main__":
    main()
