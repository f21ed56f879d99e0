"""Models, living workers and the repository's models, read from the registry at most once a second."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.model_state import ModelState, refusal_of, state_of, waiting
from shared.adapters.adapter import Adapter
from shared.adapters.store import KnownAdapters
from shared.backend import Backend
from shared.errors import HeadraceError, ModelNotFound, Unavailable
from shared.models.model_store import ModelRepository, embedding_name
from shared.models.names import scalable_models
from shared.models.worker_registry import ModelInfo, Task, WorkerInfo
from shared.protocol import Request
from shared.queue.survey import Gate
from shared.repository.status import ModelStatus
from shared.repository.traffic.rules import Traffic
from shared.settings import NO_MODEL, Settings

SNAPSHOT_LIFE_S = 1.0
PLACEHOLDERS = frozenset({"tgi", "dummy"})  # names that clients of TGI, which serves one model, send for it
MISS_LIFE_S = 0.1  # of a snapshot in which a model or version is missing, or refuses a request
RESTART_LIMIT_S = 60.0  # for which the models of a repository are remembered while no worker reports any


def under_name(drafts: Sequence[Request], model: str | None) -> tuple[Request, ...]:
    """Return the drafts for `model`; as they are for None."""
    if model is None:
        return tuple(drafts)
    return tuple(msgspec.structs.replace(draft, model=model) for draft in drafts)


@dataclass(frozen=True)
class Snapshot:
    """Contents of the registry and statuses of the repository at the time `taken`, by the event loop's clock.

    Attributes:
        models: that workers have announced.
        listed: models of this installation's settings, which are known before any worker starts.
        registered: LoRA adapters by name.
        closed: the gates of queues that are paused or draining, of the default model and of those in splits.
    """

    models: tuple[ModelInfo, ...]
    listed: tuple[ModelInfo, ...]
    workers: tuple[WorkerInfo, ...]
    asleep: frozenset[str]
    repository: dict[str, ModelStatus]
    traffic: Traffic
    registered: Mapping[str, Adapter]
    closed: Mapping[str, Gate]
    taken: float

    @cached_property
    def served(self) -> dict[str, ModelInfo]:
        """The models themselves by name, without the names that are only split, and without adapters."""
        known = {info.name: info for info in self.models}
        for status in self.repository.values():
            known.setdefault(status.name, _unannounced(status.name, status.task))
        for info in self.listed:
            known.setdefault(info.name, info)
        for name in (*(worker.model for worker in self.workers), *self.asleep):
            known.setdefault(name, _unannounced(name))
        return known

    @cached_property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters that a request may name: a model that was added later takes the name of its own."""
        return {name: adapter for name, adapter in self.registered.items() if name not in self.served}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """The first model of each name that is only split, and the base model of each adapter."""
        splits = self.traffic.splits.items()
        found = {name: split.branches[0].model for name, split in splits}
        found |= {name: adapter.base for name, adapter in self.adapters.items() if name not in found}
        return {name: model for name, model in found.items() if name not in self.served}

    @cached_property
    def known(self) -> dict[str, ModelInfo]:
        """All models that a request may name.

        One that is only split has the properties of its first model, an adapter those of its base model.
        """
        known = dict(self.served)
        for name, model in self.aliases.items():
            known[name] = msgspec.structs.replace(known.get(model, _unannounced(name)), name=name)
            if (adapter := self.adapters.get(name)) is not None:
                known[name] = msgspec.structs.replace(known[name], created=adapter.created)
        return known


def _unannounced(name: str, task: Task | None = None) -> ModelInfo:
    """Return a model that no worker has announced."""
    return ModelInfo(name=name, max_model_len=0, created=0, task=task)


class ModelCatalog:
    """Short-lived cache of the registry; concurrent callers share one read.

    Args:
        backend: has the workers' heartbeats, the statuses of the repository's models, the splits and shadow copies,
            and the gates of queues.
        settings: name the models of this installation, which are listed before any worker starts.

    Attributes:
        served_model: the default model; "" if only those of a repository are served.
        scalable: models that may have no worker, and take requests even so.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._registry = backend.registry
        self._repository = backend.repository
        self._traffic = backend.traffic
        self._queues = backend.queues
        self._adapters = KnownAdapters(backend.adapters if settings.lora_dir is not None else None)
        self.served_model = "" if settings.model == NO_MODEL else ModelRepository(settings).served_name
        self.embedding_model = embedding_name(settings)
        embedding = [_unannounced(self.embedding_model, "embed")] if self.embedding_model is not None else []
        self.scalable = scalable_models(settings)
        scalable = [_unannounced(name) for name in sorted(self.scalable)]
        self._listed = (*embedding, *([_unannounced(self.served_model)] if self.served_model else []), *scalable)
        self.any_name = settings.any_model_name
        self._snapshot: Snapshot | None = None
        self._reported: dict[str, ModelStatus] = {}  # the last statuses
        self._reported_at = 0.0
        self._reading = asyncio.Lock()

    async def snapshot(self, life: float = SNAPSHOT_LIFE_S) -> Snapshot:
        """Return the cached contents, or read them again if they are older than `life`. Raises Unavailable."""
        return self._younger_than(life) or await self._read(life)

    def _younger_than(self, life: float) -> Snapshot | None:
        snapshot, now = self._snapshot, asyncio.get_running_loop().time()
        return None if snapshot is None or now - snapshot.taken > life else snapshot

    async def _read(self, life: float) -> Snapshot:
        """Read the contents, unless another caller has read them meanwhile."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if (snapshot := self._younger_than(life)) is None:
                models, workers, asleep, statuses, traffic, adapters = await asyncio.gather(
                    self._registry.models(),
                    self._registry.workers(),
                    self._registry.asleep(),
                    self._repository.statuses(),
                    self._traffic.traffic(),
                    self._adapters.get(life),
                )
                repository = self._remembered(statuses, now)
                closed = await self._closed(traffic, adapters)
                self._snapshot = snapshot = Snapshot(
                    models=tuple(models),
                    listed=self._listed,
                    workers=tuple(workers),
                    asleep=asleep,
                    repository=repository,
                    traffic=traffic,
                    registered=adapters,
                    closed=closed,
                    taken=now,
                )
            return snapshot

    async def _closed(self, traffic: Traffic, adapters: Mapping[str, Adapter]) -> Mapping[str, Gate]:
        """Return the gates that are not open, of the default model and of those that others may stand in for.

        An adapter has that of its base model.
        """
        splits = [split.branches for split in traffic.splits.values() if len(split.branches) > 1]
        names = {branch.model for branches in splits for branch in branches}
        names |= {self.served_model} - {""}
        if not names:
            return {}
        queues = {name: adapters[name].base if name in adapters else name for name in names}
        found = await self._queues.closed(sorted(set(queues.values())))
        return {name: found[queue] for name, queue in queues.items() if queue in found}

    def _remembered(self, statuses: Sequence[ModelStatus], now: float) -> dict[str, ModelStatus]:
        """Return the statuses by name; while the worker that reported them restarts, the last ones, as waiting."""
        if statuses:
            self._reported, self._reported_at = {status.name: status for status in statuses}, now
            return self._reported
        if now - self._reported_at > RESTART_LIMIT_S:
            return {}
        return {name: waiting(status) for name, status in self._reported.items()}

    async def repository(self, life: float = SNAPSHOT_LIFE_S) -> Mapping[str, ModelStatus]:
        """Return the statuses of the repository's models by name. Raises Unavailable."""
        return (await self.snapshot(life)).repository

    async def models(self) -> list[ModelInfo]:
        """Return all models that a request may name, by name; `max_model_len` is 0 until a worker announces it.

        Adapters are last: clients that take the first model mean a model itself.
        """
        snapshot = await self.snapshot()
        return sorted(snapshot.known.values(), key=lambda info: (info.name in snapshot.adapters, info.name))

    async def aliases(self) -> dict[str, str]:
        """Return the first model of each name that is only split, and each adapter's base. Raises Unavailable."""
        return (await self.snapshot()).aliases

    async def adapters(self) -> Mapping[str, Adapter]:
        """Return the registered LoRA adapters by name. Raises Unavailable."""
        return (await self.snapshot()).adapters

    async def served(self) -> list[ModelInfo]:
        """Return the models themselves, without the names that are only split."""
        return list((await self.snapshot()).served.values())

    async def traffic(self) -> Traffic:
        """Return the splits and shadow copies. Raises Unavailable."""
        return (await self.snapshot()).traffic

    async def closed(self) -> Mapping[str, Gate]:
        """Return the gates of queues that are paused or draining, see Snapshot. Raises Unavailable."""
        return (await self.snapshot()).closed

    def forget_snapshot(self) -> None:
        """Read the registry again at the next call, so that it sees a change that was just made."""
        self._snapshot = None
        self._adapters.forget()

    async def find(self, name: str) -> ModelInfo:
        """Return the model of that name.

        Raises ModelNotFound; ModelUnavailable for a model of the repository that cannot be loaded; Unavailable.
        """
        info = await self.describe(name)
        if (refusal := await self._refusal(name)) is not None:
            raise refusal
        return info

    async def describe(self, name: str) -> ModelInfo:
        """Return the model of that name, whether it takes requests or not. Raises ModelNotFound, Unavailable."""
        info = (await self.snapshot()).known.get(name)
        if info is not None:
            return info
        raise ModelNotFound(f"the model {name!r} does not exist; see /v1/models", param="model")

    async def named(self, name: str) -> str:
        """Return the name of the model that a request means. Raises Unavailable.

        No name means the default model, and so does a placeholder, unless a model has that name. With `any_name`,
        any name may mean the only model.
        """
        if self.any_name and (only := await self.any_model()) is not None:
            return only
        if not name or (name in PLACEHOLDERS and name not in (await self.snapshot()).known):
            return self.served_model
        return name

    async def resolved(self, drafts: Sequence[Request]) -> Sequence[Request]:
        """Return the drafts with the served model in place of the names in PLACEHOLDERS. Raises Unavailable."""
        if not any(draft.model in PLACEHOLDERS for draft in drafts):
            return drafts
        async with redis_deadline():
            names = {each: await self.named(each) for each in PLACEHOLDERS}
        return [msgspec.structs.replace(each, model=names.get(each.model, each.model)) for each in drafts]

    async def _refusal(self, name: str) -> HeadraceError | None:
        """Return why a model takes no requests, by a new look if need be; None if it takes some."""
        if self._refusal_in(await self.snapshot(), name) is None:
            return None
        return self._refusal_in(await self.snapshot(MISS_LIFE_S), name)

    def _refusal_in(self, snapshot: Snapshot, name: str) -> HeadraceError | None:
        status = snapshot.repository.get(name)
        if status is None or name in snapshot.asleep or any(worker.model == name for worker in snapshot.workers):
            return None
        return refusal_of(status)

    async def states(self) -> dict[str, ModelState]:
        """Return the state of each model by name. Raises Unavailable."""
        snapshot = await self.snapshot()
        workers: dict[str, list[WorkerInfo]] = defaultdict(list)
        for worker in snapshot.workers:
            workers[worker.model].append(worker)
        found = {
            info.name: state_of(
                workers[info.name], snapshot.repository.get(info.name), asleep=info.name in snapshot.asleep
            )
            for info in await self.served()
        }
        missing = state_of([], None, asleep=False)
        return found | {name: found.get(model, missing) for name, model in (await self.aliases()).items()}

    async def any_model(self) -> str | None:
        """Return the only served model, which any name may stand for; None for several. Raises Unavailable."""
        snapshot = await self.snapshot()
        served = {
            *(info.name for info in self._listed),
            *(worker.model for worker in snapshot.workers),
            *snapshot.repository,
            *snapshot.adapters,  # which need their names
        }
        return served.pop() if len(served) == 1 else None

    async def fingerprint(self, name: str) -> str | None:
        """Return the fingerprint that a model's workers announced, or None."""
        try:
            snapshot: Snapshot | None = await self.snapshot()
        except Unavailable:  # an admitted request is answered even so, from the last contents
            snapshot = self._snapshot
        info = snapshot.served.get(name) if snapshot is not None else None
        return (info.fingerprint or None) if info is not None else None

    async def ready_workers(self) -> Counter[str]:
        """Return how many ready workers each model has, and the first model of each alias. Raises Unavailable."""
        ready = Counter(worker.model for worker in (await self.snapshot()).workers if worker.state == "ready")
        ready.update({name: ready[model] for name, model in (await self.aliases()).items()})
        return ready

    async def workers(self, model: str) -> list[WorkerInfo]:
        """Return the living workers of one model, or of an adapter's base model. Raises Unavailable."""
        snapshot = await self.snapshot()
        adapter = snapshot.adapters.get(model) if model not in snapshot.served else None
        name = model if adapter is None else adapter.base
        return [worker for worker in snapshot.workers if worker.model == name]

    async def asleep(self) -> frozenset[str]:
        """Return the models that were put to sleep. Raises Unavailable."""
        return (await self.snapshot()).asleep

    async def set_asleep(self, model: str, *, asleep: bool) -> None:
        """Put a known model to sleep, or wake it. Raises ModelNotFound, Unavailable."""
        await self.describe(model)
        await self._registry.set_asleep(model, asleep=asleep)
        self.forget_snapshot()
