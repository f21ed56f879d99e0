"""The registry of running workers and the models they serve, from the workers' heartbeats."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import msgspec

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.node import Command, pack
from shared.settings import RuntimeName

EXIT_KEPT_S = 30.0  # after the announced restart; by then the next worker has sent a heartbeat if it runs
LOADING_LEASES = 3
UNHEALTHY_STATUS = 86  # exit status of a worker whose engine hangs or fails its canary
MODEL_TTL_S = 86_400  # after its last worker's heartbeat; until then a model accepts requests


# Of a model. A cross-encoder classifies with one label; to predict is to compute tensors from tensors.
Task = Literal["generate", "embed", "classify", "predict"]
WorkerState = Literal["loading", "ready", "draining", "sleeping", "hung"]
ExitCause = Literal["hung", "killed", "exited"]


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A served model; `max_model_len` in tokens, `created` in seconds since the epoch, 0 until a worker has it.

    `fingerprint` identifies the weights, precision and version that determine an answer. Until it is known it is
    empty, and `task` is None. `runtime` executes the model, with at most `max_num_seqs` sequences at once in each
    worker.
    """

    name: str
    max_model_len: int
    created: int
    fingerprint: str = ""
    task: Task | None = None
    runtime: RuntimeName = "native"
    max_num_seqs: int = 0

    @property
    def announced(self) -> bool:
        """True if a worker has loaded it."""
        return self.created > 0

    @classmethod
    def of(cls, worker: WorkerInfo, created: int) -> ModelInfo:
        """Return the model that a worker serves."""
        return cls(
            name=worker.model,
            max_model_len=worker.max_model_len,
            created=created,
            fingerprint=worker.fingerprint,
            task=worker.task,
            runtime=worker.runtime,
            max_num_seqs=worker.max_num_seqs,
        )


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Last heartbeat of a worker.

    Attributes:
        state: a hung one has given back its requests and is about to exit.
        progress: of loading, from 0 to 1.
        task: of the model; None for a worker that only refuses requests.
        active_requests: that it holds, those that its engine does not run yet included.
        fault: the reason for which it takes no new requests at the moment, "" if it takes them.
        running, waiting: sequences of the engine.
        blocks_used, blocks_total: blocks of the KV cache.
        tokens_in_flight: prompt tokens, and tokens that may still be generated, of the requests that it holds.
        tokens_per_s: moving average of the speed of a running sequence, times the sequences that can run at once; 0
            before the first.
        first_token_s: moving average of the seconds from the start of a run to its first token; None before one.
        weight: its share under weighted routing, if set.
        adapters: it takes orders to load LoRA adapters.
        step_age: seconds since the engine's step that runs now began; None between steps.
        gpu_memory_used: bytes; None without a GPU.
        heartbeat_age: seconds since the heartbeat, as the reader of the registry finds it; None if unknown.
    """

    id: str
    pid: int
    model: str
    state: WorkerState
    progress: float = 0.0
    fault: str = ""
    max_model_len: int = 0
    task: Task | None = "generate"
    fingerprint: str = ""
    runtime: RuntimeName = "native"
    max_num_seqs: int = 0
    active_requests: int = 0
    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    tokens_in_flight: int = 0
    tokens_per_s: float = 0.0
    first_token_s: float | None = None
    weight: float | None = None
    adapters: bool = False
    step_age: float | None = None
    gpu_memory_used: int | None = None
    heartbeat_age: float | None = None

    @property
    def announces(self) -> bool:
        """True if it serves its model."""
        return self.state not in ("loading", "sleeping") and self.task is not None


def worker_id_prefix(pid: int) -> str:
    """Return the beginning of the ids of workers in the process `pid` of this machine."""
    return f"{os.uname().nodename}-{pid}-"


class WorkerExit(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a worker process, as its supervisor saw it.

    `status` is the exit status, negative for a signal. Times are in seconds since the epoch, by the server's clock.
    """

    status: int
    at: float
    restart_at: float

    @property
    def cause(self) -> ExitCause:
        if self.status == UNHEALTHY_STATUS:
            return "hung"
        return "killed" if self.status < 0 else "exited"

    @property
    def kept(self) -> float:
        """Return the seconds for which it is kept."""
        return self.restart_at - self.at + EXIT_KEPT_S


class Registry(Protocol):
    """Running workers and their models. Every call may raise Unavailable."""

    async def beat(self, worker: WorkerInfo) -> None:
        """Announce a worker, and its model once that is loaded."""

    async def leave(self, worker_id: str) -> None:
        """Remove a worker at once."""

    async def workers(self) -> list[WorkerInfo]:
        """Return the running workers."""

    async def models(self) -> list[ModelInfo]:
        """Return the known models, sorted by name."""

    async def note_exit(self, model: str, exit_: WorkerExit) -> None:
        """Record that a worker of the model exited and will be restarted, and count it."""

    async def count_exits(self) -> dict[tuple[str, str], int]:
        """Return how many workers exited, by model and cause."""

    async def last_exit(self, model: str) -> WorkerExit | None:
        """Return the last recorded exit; None some time after the restart."""

    async def set_asleep(self, model: str, *, asleep: bool) -> None:
        """Put a model to sleep, or wake it. This outlives all processes."""

    async def asleep(self) -> frozenset[str]:
        """Return the models that were put to sleep; their workers follow within seconds."""


async def remove_process(registry: Registry, pid: int) -> None:
    """Remove the workers of a process of this machine that has ended. Raises Unavailable."""
    for worker in await registry.workers():
        if worker.id.startswith(worker_id_prefix(pid)):
            await registry.leave(worker.id)


_decode_worker = msgspec.json.Decoder(WorkerInfo).decode
_decode_model = msgspec.json.Decoder(ModelInfo).decode


class RedisRegistry:
    """Registry on Redis; heartbeats expire by the server's clock.

    Args:
        lease: seconds without a heartbeat after which a worker has lost its requests, and is no longer listed. A
            worker that loads is listed for LOADING_LEASES, since loading may delay its heartbeats.
    """

    def __init__(self, server: RedisServer, *, lease: float) -> None:
        self._server = server
        self._foreign = server.foreign
        self._lease_ms = int(lease * 1000)

    async def beat(self, worker: WorkerInfo) -> None:
        """Announce a worker, and its model once that is loaded."""
        key = keys.worker(worker.id)
        commands = [
            (key, pack("SET", key, msgspec.json.encode(worker), "PX", self._kept_ms(worker))),
            (keys.WORKERS, pack("SADD", keys.WORKERS, worker.id)),
        ]
        key = keys.model(worker.model)
        if worker.state == "sleeping":  # it does not know its model's properties
            commands.append((key, pack("PEXPIRE", key, MODEL_TTL_S * 1000)))
        elif worker.announces:
            model = msgspec.json.encode(ModelInfo.of(worker, int(time.time())))
            commands += [
                (key, pack("SET", key, model, "EX", MODEL_TTL_S)),
                (keys.MODELS, pack("SADD", keys.MODELS, worker.model)),
            ]
        await self._exchange(commands)

    async def leave(self, worker_id: str) -> None:
        """Remove a worker at once."""
        key = keys.worker(worker_id)
        await self._exchange(
            [(key, pack("DEL", key)), (keys.WORKERS, pack("SREM", keys.WORKERS, worker_id))],
        )

    async def workers(self) -> list[WorkerInfo]:
        """Return the running workers; remove the ids of expired heartbeats on the way.

        The age of a heartbeat is the part of its life that has passed, since it expires by the server's clock.
        """
        found = await self._members(keys.WORKERS, keys.worker)
        workers = self._foreign.read_all("registry", found, _decode_worker)
        names = [keys.worker(worker.id) for worker in workers]
        left_ms = await self._exchange([(name, pack("PTTL", name)) for name in names])
        return [
            msgspec.structs.replace(worker, heartbeat_age=max(0, self._kept_ms(worker) - left) / 1000)
            for worker, left in zip(workers, left_ms, strict=True)
            if left > 0  # otherwise it has expired in the meantime
        ]

    async def models(self) -> list[ModelInfo]:
        """Return the known models, sorted by name."""
        found = await self._members(keys.MODELS, keys.model)
        return sorted(self._foreign.read_all("registry", found, _decode_model), key=lambda info: info.name)

    async def note_exit(self, model: str, exit_: WorkerExit) -> None:
        key, ttl_ms = keys.worker_exit(model), int(exit_.kept * 1000)
        await self._exchange(
            [
                (key, pack("SET", key, msgspec.json.encode(exit_), "PX", ttl_ms)),
                (keys.WORKER_EXITS, pack("HINCRBY", keys.WORKER_EXITS, f"{exit_.cause}:{model}", 1)),
            ]
        )

    async def count_exits(self) -> dict[tuple[str, str], int]:
        [found] = await self._exchange([(keys.WORKER_EXITS, pack("HGETALL", keys.WORKER_EXITS))])
        counts = {}
        for field, count in zip(found[::2], found[1::2], strict=True):
            cause, _, model = field.decode(errors="replace").partition(":")
            if cause in get_args(ExitCause) and count.isdigit():
                counts[model, cause] = int(count)
        return counts

    async def last_exit(self, model: str) -> WorkerExit | None:
        key = keys.worker_exit(model)
        [found] = await self._exchange([(key, pack("GET", key))])
        if found is None:
            return None
        return self._foreign.read("registry", key, lambda: msgspec.json.decode(found, type=WorkerExit))

    async def set_asleep(self, model: str, *, asleep: bool) -> None:
        await self._exchange([(keys.ASLEEP, pack("SADD" if asleep else "SREM", keys.ASLEEP, model))])

    async def asleep(self) -> frozenset[str]:
        [members] = await self._exchange([(keys.ASLEEP, pack("SMEMBERS", keys.ASLEEP))])
        return frozenset(member.decode(errors="replace") for member in members)

    def _kept_ms(self, worker: WorkerInfo) -> int:
        """Return for how many milliseconds a heartbeat is kept."""
        return self._lease_ms * (LOADING_LEASES if worker.state == "loading" else 1)

    async def _members(self, index: str, key: Callable[[str], str]) -> list[tuple[bytes, bytes]]:
        """Return the values of all members, each with its key."""
        [members] = await self._exchange([(index, pack("SMEMBERS", index))])
        names = self._foreign.read_all("registry", zip(members, members, strict=True), bytes.decode)
        values = await self._exchange([(key(name), pack("GET", key(name))) for name in names])
        if gone := [name for name, value in zip(names, values, strict=True) if value is None]:
            await self._exchange([(index, pack("SREM", index, *gone))])
        return [(key(name).encode(), value) for name, value in zip(names, values, strict=True) if value is not None]

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip, not atomically, since each may have its own slot."""
        async with self._server.reaching("Redis"):
            replies = await self._server.client.exchange(commands)
            if foreign := [i for i, reply in enumerate(replies) if str(reply).startswith("WRONGTYPE")]:
                await self._remove([commands[i][0] for i in foreign])
                again = await self._server.client.exchange([commands[i] for i in foreign])
                for i, reply in zip(foreign, again, strict=True):
                    replies[i] = reply
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    async def _remove(self, names: Sequence[str]) -> None:
        """Remove foreign keys of another type."""
        await self._server.client.exchange([(name, pack("DEL", name)) for name in names])
        for name in names:
            self._foreign.note("registry", name.encode(), "wrong type of key")


class MemoryRegistry:
    """Registry in memory, for workers of this process, which need no heartbeat."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerInfo] = {}
        self._models: dict[str, ModelInfo] = {}
        self._exit_counts: Counter[tuple[str, str]] = Counter()
        self._exits: dict[str, tuple[WorkerExit, float]] = {}  # by model, each with the time at which it expires
        self._asleep: set[str] = set()

    async def beat(self, worker: WorkerInfo) -> None:
        self._workers[worker.id] = worker
        if worker.announces:
            self._models.setdefault(worker.model, ModelInfo.of(worker, int(time.time())))

    async def leave(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)

    async def workers(self) -> list[WorkerInfo]:
        return list(self._workers.values())

    async def models(self) -> list[ModelInfo]:
        return sorted(self._models.values(), key=lambda info: info.name)

    async def note_exit(self, model: str, exit_: WorkerExit) -> None:
        self._exits[model] = exit_, time.monotonic() + exit_.kept
        self._exit_counts[model, exit_.cause] += 1

    async def count_exits(self) -> dict[tuple[str, str], int]:
        return dict(self._exit_counts)

    async def last_exit(self, model: str) -> WorkerExit | None:
        exit_, until = self._exits.get(model, (None, 0.0))
        return exit_ if time.monotonic() < until else None

    async def set_asleep(self, model: str, *, asleep: bool) -> None:
        (self._asleep.add if asleep else self._asleep.discard)(model)

    async def asleep(self) -> frozenset[str]:
        return frozenset(self._asleep)
