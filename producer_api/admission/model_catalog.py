"""Models, living workers and the repository's models, read from the registry at most once a second."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from producer_api.admission.model_state import ModelState, refusal_of, state_of, waiting
from shared.backend import Backend
from shared.errors import HeadraceError, ModelNotFound, Unavailable
from shared.models.model_store import ModelRepository, embedding_name
from shared.models.worker_registry import ModelInfo, WorkerInfo
from shared.protocol import Request
from shared.repository.status import ModelStatus
from shared.repository.traffic.rules import Traffic
from shared.settings import NO_MODEL, Settings

SNAPSHOT_LIFE_S = 1.0
MISS_LIFE_S = 0.1  # after which a model or version that is not there is looked for again
RESTART_LIMIT_S = 60.0  # for which the models of a repository are remembered while no worker reports any


def under_name(drafts: Sequence[Request], model: str | None) -> tuple[Request, ...]:
    """Return the drafts for `model`; as they are for None."""
    if model is None:
        return tuple(drafts)
    return tuple(msgspec.structs.replace(draft, model=model) for draft in drafts)


@dataclass(frozen=True)
class Snapshot:
    """Contents of the registry and statuses of the repository at the time `taken`, by the event loop's clock."""

    models: tuple[ModelInfo, ...]
    workers: tuple[WorkerInfo, ...]
    asleep: frozenset[str]
    repository: dict[str, ModelStatus]
    traffic: Traffic
    taken: float


class ModelCatalog:
    """Short-lived cache of the registry; concurrent callers share one read.

    Args:
        backend: has the workers' heartbeats, the statuses of the repository's models, the splits and shadow copies.
        settings: name the models of this installation, which are listed before any worker starts.

    Attributes:
        served_model: the default model; "" if only those of a repository are served.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._registry = backend.registry
        self._repository = backend.repository
        self._traffic = backend.traffic
        self.served_model = "" if settings.model == NO_MODEL else ModelRepository(settings).served_name
        self._default = (self.served_model,) if self.served_model else ()
        self.embedding_model = embedding_name(settings)
        self.any_name = settings.any_model_name
        self._snapshot: Snapshot | None = None
        self._reported: tuple[dict[str, ModelStatus], float] = (
            {},
            0.0,
        )  # the last statuses, and when they were read
        self._reading = asyncio.Lock()

    async def snapshot(self, life: float = SNAPSHOT_LIFE_S) -> Snapshot:
        """Return the cached contents, or read them again if they are older than `life`. Raises Unavailable."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._snapshot is None or now - self._snapshot.taken > life:
                models, workers, asleep, statuses, traffic = await asyncio.gather(
                    self._registry.models(),
                    self._registry.workers(),
                    self._registry.asleep(),
                    self._repository.statuses(),
                    self._traffic.traffic(),
                )
                repository = self._remembered(statuses, now)
                self._snapshot = Snapshot(tuple(models), tuple(workers), asleep, repository, traffic, now)
            return self._snapshot

    def _remembered(self, statuses: Sequence[ModelStatus], now: float) -> dict[str, ModelStatus]:
        """Return the statuses by name; while the worker that reported them restarts, the last ones, as waiting."""
        if statuses:
            self._reported = {status.name: status for status in statuses}, now
            return self._reported[0]
        found, at = self._reported
        if now - at > RESTART_LIMIT_S:
            return {}
        return {name: waiting(status) for name, status in found.items()}

    async def repository(self, life: float = SNAPSHOT_LIFE_S) -> Mapping[str, ModelStatus]:
        """Return the statuses of the repository's models by name. Raises Unavailable."""
        return (await self.snapshot(life)).repository

    async def models(self) -> list[ModelInfo]:
        """Return all models that a request may name; `max_model_len` is 0 until a worker announces it.

        A name that is only split has the properties of the first of its models.
        """
        known = {info.name: info for info in await self.served()}
        for name, model in (await self.aliases()).items():
            first = known.get(model, ModelInfo(name=name, max_model_len=0, created=0))
            known[name] = msgspec.structs.replace(first, name=name)
        return sorted(known.values(), key=lambda info: info.name)

    async def aliases(self) -> dict[str, str]:
        """Return the first model of each name that is only split. Raises Unavailable."""
        served = {info.name for info in await self.served()}
        splits = (await self.snapshot()).traffic.splits
        return {name: split.branches[0].model for name, split in splits.items() if name not in served}

    async def served(self) -> list[ModelInfo]:
        """Return the models themselves, without the names that are only split."""
        snapshot = await self.snapshot()
        known = {info.name: info for info in snapshot.models}
        if (name := self.embedding_model) is not None:
            known.setdefault(name, ModelInfo(name=name, max_model_len=0, created=0, task="embed"))
        for status in snapshot.repository.values():
            known.setdefault(status.name, ModelInfo(name=status.name, max_model_len=0, created=0, task=status.task))
        for name in (*self._default, *(worker.model for worker in snapshot.workers), *snapshot.asleep):
            known.setdefault(name, ModelInfo(name=name, max_model_len=0, created=0))
        return list(known.values())

    async def traffic(self) -> Traffic:
        """Return the splits and shadow copies. Raises Unavailable."""
        return (await self.snapshot()).traffic

    def forget_snapshot(self) -> None:
        """Read the registry again at the next call, so that it sees a change that was just made."""
        self._snapshot = None

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
        for info in await self.models():
            if info.name == name:
                return info
        raise ModelNotFound(f"the model {name!r} does not exist; see /v1/models", param="model")

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
        served = {*self._default, *(worker.model for worker in snapshot.workers), *snapshot.repository}
        served |= {self.embedding_model} - {None}
        return served.pop() if len(served) == 1 else None

    async def fingerprint(self, name: str) -> str | None:
        """Return the fingerprint that a model's workers announced, or None."""
        try:
            snapshot = await self.snapshot()
        except Unavailable:  # an admitted request is answered even so, from the last contents
            snapshot = self._snapshot or Snapshot((), (), frozenset(), {}, Traffic(), 0.0)
        return next((info.fingerprint or None for info in snapshot.models if info.name == name), None)

    async def ready_workers(self) -> Counter[str]:
        """Return how many ready workers each model has, and the first model of each alias. Raises Unavailable."""
        ready = Counter(worker.model for worker in (await self.snapshot()).workers if worker.state == "ready")
        ready.update({name: ready[model] for name, model in (await self.aliases()).items()})
        return ready

    async def workers(self, model: str) -> list[WorkerInfo]:
        """Return the living workers of one model. Raises Unavailable."""
        return [worker for worker in (await self.snapshot()).workers if worker.model == model]

    async def asleep(self) -> frozenset[str]:
        """Return the models that were put to sleep. Raises Unavailable."""
        return (await self.snapshot()).asleep

    async def set_asleep(self, model: str, *, asleep: bool) -> None:
        """Put a known model to sleep, or wake it. Raises ModelNotFound, Unavailable."""
        await self.describe(model)
        await self._registry.set_asleep(model, asleep=asleep)
        self.forget_snapshot()
