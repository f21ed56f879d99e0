"""Models and living workers, read from the registry at most once a second."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from shared.errors import ModelNotFound, Unavailable
from shared.models.model_store import ModelRepository, embedding_name
from shared.models.worker_registry import ModelInfo, Registry, WorkerInfo
from shared.protocol import Request
from shared.repository.traffic.rules import Traffic
from shared.repository.traffic.store import TrafficStore
from shared.settings import Settings

SNAPSHOT_LIFE_S = 1.0


def under_name(drafts: Sequence[Request], model: str | None) -> tuple[Request, ...]:
    """Return the drafts for `model`; as they are for None."""
    if model is None:
        return tuple(drafts)
    return tuple(msgspec.structs.replace(draft, model=model) for draft in drafts)


@dataclass(frozen=True)
class Snapshot:
    """Contents of the registry at the time `taken`, by the event loop's clock."""

    models: tuple[ModelInfo, ...]
    workers: tuple[WorkerInfo, ...]
    asleep: frozenset[str]
    traffic: Traffic
    taken: float


class ModelCatalog:
    """Short-lived cache of the registry; concurrent callers share one read.

    Args:
        registry: has the workers' heartbeats.
        traffic: has the splits and shadow copies.
        settings: name the models of this installation, which are listed before any worker starts.
    """

    def __init__(self, registry: Registry, traffic: TrafficStore, settings: Settings) -> None:
        self._registry = registry
        self._traffic = traffic
        self.served_model = ModelRepository(settings).served_name
        self.embedding_model = embedding_name(settings)
        self.any_name = settings.any_model_name
        self._snapshot: Snapshot | None = None
        self._reading = asyncio.Lock()

    async def snapshot(self) -> Snapshot:
        """Return the cached contents, or read them again if they are too old. Raises Unavailable."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._snapshot is None or now - self._snapshot.taken > SNAPSHOT_LIFE_S:
                models, workers, asleep, traffic = await asyncio.gather(
                    self._registry.models(),
                    self._registry.workers(),
                    self._registry.asleep(),
                    self._traffic.traffic(),
                )
                self._snapshot = Snapshot(tuple(models), tuple(workers), asleep, traffic, now)
            return self._snapshot

    async def models(self) -> list[ModelInfo]:
        """Return all models that a request may name; `max_model_len` is 0 until a worker announces it.

        A name that is only split has the properties of the first of its models.
        """
        known = {info.name: info for info in await self.served()}
        for name, split in (await self.snapshot()).traffic.splits.items():
            first = known.get(split.branches[0].model, ModelInfo(name=name, max_model_len=0, created=0))
            known.setdefault(name, msgspec.structs.replace(first, name=name))
        return sorted(known.values(), key=lambda info: info.name)

    async def served(self) -> list[ModelInfo]:
        """Return the models themselves, without the names that are only split."""
        snapshot = await self.snapshot()
        known = {info.name: info for info in snapshot.models}
        if (name := self.embedding_model) is not None:
            known.setdefault(name, ModelInfo(name=name, max_model_len=0, created=0, task="embed"))
        for name in (self.served_model, *(worker.model for worker in snapshot.workers), *snapshot.asleep):
            known.setdefault(name, ModelInfo(name=name, max_model_len=0, created=0))
        return list(known.values())

    async def traffic(self) -> Traffic:
        """Return the splits and shadow copies. Raises Unavailable."""
        return (await self.snapshot()).traffic

    def forget_snapshot(self) -> None:
        """Read the registry again at the next call, so that it sees a change that was just made."""
        self._snapshot = None

    async def find(self, name: str) -> ModelInfo:
        """Return the model of that name. Raises ModelNotFound, Unavailable."""
        for info in await self.models():
            if info.name == name:
                return info
        raise ModelNotFound(f"the model {name!r} does not exist; see /v1/models", param="model")

    async def any_model(self) -> str | None:
        """Return the only served model, which any name may stand for; None for several. Raises Unavailable."""
        workers = (await self.snapshot()).workers
        served = {self.served_model, *(worker.model for worker in workers)} | ({self.embedding_model} - {None})
        return self.served_model if len(served) == 1 else None

    async def fingerprint(self, name: str) -> str | None:
        """Return the fingerprint that a model's workers announced, or None."""
        try:
            snapshot = await self.snapshot()
        except Unavailable:  # an admitted request is answered even so, from the last contents
            snapshot = self._snapshot or Snapshot((), (), frozenset(), Traffic(), 0.0)
        return next((info.fingerprint or None for info in snapshot.models if info.name == name), None)

    async def ready_workers(self) -> Counter[str]:
        """Return how many ready workers each model has. Raises Unavailable."""
        return Counter(worker.model for worker in (await self.snapshot()).workers if worker.state == "ready")

    async def workers(self, model: str) -> list[WorkerInfo]:
        """Return the living workers of one model. Raises Unavailable."""
        return [worker for worker in (await self.snapshot()).workers if worker.model == model]

    async def asleep(self) -> frozenset[str]:
        """Return the models that were put to sleep. Raises Unavailable."""
        return (await self.snapshot()).asleep

    async def set_asleep(self, model: str, *, asleep: bool) -> None:
        """Put a known model to sleep, or wake it. Raises ModelNotFound, Unavailable."""
        await self.find(model)
        await self._registry.set_asleep(model, asleep=asleep)
        self.forget_snapshot()
