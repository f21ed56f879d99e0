"""Serving of a model with the backend "headrace": one version, in a runtime and behind a worker of its own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

from shared.errors import HeadraceError
from shared.models.model_store import SCRIPTED, ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.models.weight_files import loaded_bytes
from shared.models.worker_registry import Task
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionStatistics
from shared.settings import Settings
from workers.repository.plan import Plan
from workers.repository.serving.context import HostContext
from workers.repository.serving.interface import load_error
from workers.repository.serving.memory_budget import Holder
from workers.repository.serving.model_settings import model_settings
from workers.repository.serving.running_worker import RunningWorker
from workers.repository.serving.version_board import VersionBoard
from workers.startup.loading import load_engine

GIB = 2**30
FLOAT_BYTES = 4  # on the CPU, where weights are float32


class TextServing:
    """Serves the newest version of a plan. Another version, or other files, need another object.

    Args:
        on_failure: called with the reason if the engine fails.
    """

    def __init__(self, plan: Plan, context: HostContext, on_failure: Callable[[str], None]) -> None:
        assert plan.spec is not None
        self.board = VersionBoard(context.changed)
        self.spec: ModelSpec = plan.spec
        self._context = context
        self._on_failure = on_failure
        self._version = max(plan.versions)
        self._holder = _holder(plan)
        self._folder = plan.versions[self._version].folder
        self._worker: RunningWorker | None = None

    @property
    def task(self) -> Task | None:
        return self._worker.info.task if self._worker is not None else None

    @property
    def serves(self) -> bool:
        return self._worker is not None

    @property
    def holds_requests(self) -> bool:
        return self._worker is not None and self._worker.holds_requests

    @property
    def used_at(self) -> float:
        return self._worker.used_at if self._worker is not None else 0.0

    def fits(self, plan: Plan) -> bool:
        return plan.spec == self.spec and _holder(plan) == self._holder

    async def update(self, plan: Plan) -> None:
        if self._worker is not None:
            return
        progress = StartupProgress()
        self.board.set(self._version, "LOADING", progress=progress)
        try:
            await self._load(progress)
        except HeadraceError as error:
            failure = load_error(error, plan.folder or self._folder)
            self.board.set(self._version, "UNAVAILABLE", failure.message)
            raise failure from error
        self.board.set(self._version, "READY")

    async def _load(self, progress: StartupProgress) -> None:
        context = self._context
        settings = model_settings(context.settings, self.spec, self._folder)
        repository = ModelRepository(settings)
        weights = await asyncio.to_thread(_weight_bytes, Path(settings.model))  # 0 if they are not here yet
        cache = await asyncio.to_thread(_cache_bytes, settings)
        await context.budget.reserve(self._holder, weights + cache)
        info = context.new_worker(self.spec.name)
        try:
            async with context.loading_record.loading(self._holder, info.id):
                engine, info = await load_engine(settings, repository, context.backend, info, progress)
            if settings.runtime == "native" and settings.model != SCRIPTED:
                weights = await asyncio.to_thread(lambda: _weight_bytes(repository.folder()))
            await context.budget.hold(self._holder, weights + cache * (engine.task == "generate"))
        except BaseException:
            context.budget.release(self._holder)
            await context.leave(info)
            raise
        self._worker = RunningWorker(info, engine, settings, context, self._on_failure)

    async def stop(self, grace: float | None = None) -> None:
        self.board.set(self._version, "UNLOADING")
        if self._worker is not None:
            await self._worker.drain(grace)
            await asyncio.to_thread(gc.collect)  # an engine has cycles, and holds much memory
        self._context.budget.release(self._holder)
        self.board.remove(self._version)

    def statistics(self) -> Mapping[int, VersionStatistics]:
        return {}


def _holder(plan: Plan) -> Holder:
    version = max(plan.versions)
    return Holder(plan.name, version, plan.versions[version].stamp)


def _weight_bytes(folder: Path) -> int:
    """Return the memory of the weights in a folder, 0 without a folder. Raises ConfigError for a broken file."""
    return loaded_bytes(folder.expanduser(), FLOAT_BYTES)


def _cache_bytes(settings: Settings) -> int:
    """Return the memory of the KV cache, which an encoder does not have. Raises ConfigError."""
    if settings.runtime != "native":
        return 0
    folder = Path(settings.model).expanduser()
    if (folder / "config.json").is_file():
        from workers.engine.models.encoder_loader import is_encoder  # noqa: PLC0415  torch

        if is_encoder(folder):
            return 0
    return int(settings.kv_cache_gib * GIB)
