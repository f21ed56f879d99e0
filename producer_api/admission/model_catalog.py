"""Which models are known and which workers live, asked of the registry at most once a second.

It does not know what a request may ask of a model: that is admission's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shared.errors import ModelNotFound, Unavailable
from shared.models.model_store import ModelRepository, embedding_name
from shared.models.worker_registry import ModelInfo, Registry, WorkerInfo
from shared.settings import Settings

FRESH = 1.0  # seconds


@dataclass(frozen=True)
class Snapshot:
    """The registry at one moment; `taken` by the event loop's clock."""

    models: tuple[ModelInfo, ...]
    workers: tuple[WorkerInfo, ...]
    taken: float


class Catalog:
    """The registry behind a short cache; many callers at once ask it once.

    Args:
        registry: where the workers' heartbeats are.
        settings: name the models that this installation serves, known before any worker is.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self.served_model = ModelRepository(settings).served_name
        self.embedding_model = embedding_name(settings)
        self._snapshot: Snapshot | None = None
        self._asking = asyncio.Lock()

    async def snapshot(self) -> Snapshot:
        """Raises Unavailable."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._snapshot is None or now - self._snapshot.taken > FRESH:
                models, workers = await asyncio.gather(self._registry.models(), self._registry.workers())
                self._snapshot = Snapshot(tuple(models), tuple(workers), now)
            return self._snapshot

    async def models(self) -> list[ModelInfo]:
        """Every model a request may name, by name; `max_model_len` is 0 while nobody knows it."""
        snapshot = await self.snapshot()
        known = {info.name: info for info in snapshot.models}
        if (name := self.embedding_model) is not None:
            known.setdefault(name, ModelInfo(name=name, max_model_len=0, created=0, task="embed"))
        for name in (self.served_model, *(worker.model for worker in snapshot.workers)):
            known.setdefault(name, ModelInfo(name=name, max_model_len=0, created=0))
        return sorted(known.values(), key=lambda info: info.name)

    async def find(self, name: str) -> ModelInfo:
        """Raises ModelNotFound, Unavailable."""
        for info in await self.models():
            if info.name == name:
                return info
        raise ModelNotFound(f"the model {name!r} does not exist; /v1/models lists those that do", param="model")

    async def fingerprint(self, name: str) -> str | None:
        """Of a model, as its workers tell it; None while nobody has told."""
        try:
            snapshot = await self.snapshot()
        except Unavailable:  # what was admitted is answered all the same
            snapshot = self._snapshot or Snapshot((), (), 0.0)
        return next((info.fingerprint or None for info in snapshot.models if info.name == name), None)

    async def workers(self, model: str) -> list[WorkerInfo]:
        """The living workers of one model. Raises Unavailable."""
        return [worker for worker in (await self.snapshot()).workers if worker.model == model]
