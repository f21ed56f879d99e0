"""Serving of a model that takes tensors, or of an ensemble: one engine with all versions, behind one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import Task
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionState, VersionStatistics
from workers.predictors.engine import PredictorEngine
from workers.predictors.instances import instance_specs
from workers.predictors.interface import Predictor
from workers.predictors.labels import with_labels
from workers.predictors.select import module_for
from workers.repository.plan import Plan, PlannedVersion
from workers.repository.serving.context import HostContext
from workers.repository.serving.interface import in_thread, load_error
from workers.repository.serving.memory_budget import Holder, MemoryExceeded, folder_bytes
from workers.repository.serving.running_worker import RunningWorker
from workers.repository.serving.version_board import VersionBoard
from workers.startup.loading import heartbeats, ready_entry

BATCHES_IN_ADVANCE = 2  # that an instance's requests may fill, so that the next batch is there when one ends


class PredictorServing:
    """Serves the versions of one model.

    Args:
        on_failure: called with the reason if the engine fails.
    """

    task: Task | None = "predict"

    def __init__(self, plan: Plan, context: HostContext, on_failure: Callable[[str], None]) -> None:
        assert plan.spec is not None
        self.board = VersionBoard(context.changed)
        self._described = plan.spec
        self._context = context
        self._on_failure = on_failure
        self._engine = PredictorEngine(plan.spec, plan.folder, find=context.engines.find, cache=context.cache)
        self._loaded: dict[int, Holder] = {}
        self._worker: RunningWorker | None = None

    @property
    def spec(self) -> ModelSpec:
        return self._engine.spec

    @property
    def serves(self) -> bool:
        return bool(self._loaded)

    @property
    def holds_requests(self) -> bool:
        stats = self._engine.stats()
        return (self._worker is not None and self._worker.holds_requests) or bool(stats.running + stats.waiting)

    @property
    def used_at(self) -> float:
        return self._worker.used_at if self._worker is not None else 0.0

    def fits(self, plan: Plan) -> bool:
        return plan.spec == self._described

    async def update(self, plan: Plan) -> None:
        self._engine.await_versions()
        failure: ConfigError | None = None
        try:
            # The newest first: a request without a version gets the newest that is ready.
            for version, planned in sorted(plan.versions.items(), reverse=True):
                if self._loaded.get(version) != Holder(plan.name, version, planned.stamp):
                    try:
                        await self._load(plan, version, planned)
                    except ConfigError as error:
                        failure = load_error(error, plan.folder or planned.folder.parent)
                        state: VersionState = "READY" if version in self._loaded else "UNAVAILABLE"
                        self.board.set(version, state, failure.message)
            if failure is not None:
                raise failure
            for version in self._loaded.keys() - plan.versions.keys():
                await self._unload(version)
        finally:
            self._engine.settle()

    async def _load(self, plan: Plan, version: int, planned: PlannedVersion) -> None:
        holder = Holder(plan.name, version, planned.stamp)
        progress = StartupProgress()
        if version not in self._loaded:  # else it serves with its old files meanwhile
            self.board.set(version, "LOADING", progress=progress)
        needed = await asyncio.to_thread(folder_bytes, planned.folder) * _instances(self._described)
        await self._reserve(plan, holder, needed)
        context, info = self._context, self._context.new_worker(plan.name)
        try:
            async with (
                heartbeats(context.backend, info, context.settings.lease, progress),
                context.loading_record.loading(holder, info.id),
            ):
                spec, instances = await in_thread(lambda: self._load_instances(plan, planned.folder))
                await self._add(version, spec, instances, holder)
        except BaseException:
            context.budget.release(holder)
            raise
        finally:
            await context.leave(info)
        if (old := self._loaded.get(version)) is not None:
            context.budget.release(old)
        self._loaded[version] = holder
        self.board.set(version, "READY")
        if self._worker is None:
            self._start_worker()

    async def _reserve(self, plan: Plan, holder: Holder, needed: int) -> None:
        """Reserve memory. Without room for both, unload the versions that leave before the new one is there."""
        try:
            await self._context.budget.reserve(holder, needed)
        except MemoryExceeded:
            leaving = self._loaded.keys() - plan.versions.keys()
            if not leaving:
                raise
            for version in leaving:
                await self._unload(version)
            await self._context.budget.reserve(holder, needed)

    async def _add(self, version: int, spec: ModelSpec, instances: Sequence[Predictor], holder: Holder) -> None:
        """Serve a loaded version once there is room for what it holds. Raises ConfigError."""
        try:
            await self._context.budget.hold(holder, sum(instance.memory_bytes for instance in instances))
        except BaseException:
            await asyncio.to_thread(close_all, instances)
            raise
        await in_thread(lambda: self._engine.add_version(str(version), instances, spec=spec))

    def _load_instances(self, plan: Plan, folder: Path) -> tuple[ModelSpec, list[Predictor]]:
        """Return the complete description of a version and its instances; called in a thread."""
        if self._described.ensemble:
            return with_labels(self._described, plan.folder or folder.parent), []
        module = module_for(self._described)
        spec = with_labels(module.complete(self._described, folder), plan.folder or folder.parent)
        instances: list[Predictor] = []
        try:
            for each in instance_specs(spec):
                instances.append(module.load(each, folder, threads=self._context.settings.threads))
        except BaseException:
            close_all(instances)
            raise
        return spec, instances

    def _start_worker(self) -> None:
        capacity = max(self._context.settings.max_num_seqs, BATCHES_IN_ADVANCE * _seats(self.spec))
        settings = self._context.settings.model_copy(update={"max_num_seqs": capacity})
        if self.spec.sequence_batching is not None:
            self._context.backend.router.keep_sequences(self.spec.name)
        self._context.engines.add(self._engine)
        info = ready_entry(self._context.new_worker(self.spec.name), self._engine, settings)
        self._worker = RunningWorker(info, self._engine, settings, self._context, self._on_failure)

    async def _unload(self, version: int) -> None:
        self.board.set(version, "UNLOADING")
        await asyncio.wrap_future(self._engine.remove_version(str(version)))
        self._context.budget.release(self._loaded.pop(version))
        self.board.remove(version)

    async def stop(self, grace: float | None = None) -> None:
        for version in self._loaded:
            self.board.set(version, "UNLOADING")
        if self._worker is not None:
            await self._worker.drain(grace)
            self._context.engines.remove(self._engine)
        await asyncio.to_thread(self._engine.close)
        for version, holder in self._loaded.items():
            self._context.budget.release(holder)
            self.board.remove(version)
        self._loaded.clear()

    def statistics(self) -> Mapping[int, VersionStatistics]:
        return {int(version): found for version, found in self._engine.statistics().items()}


def close_all(instances: Sequence[Predictor]) -> None:
    for instance in instances:
        instance.close()


def _instances(spec: ModelSpec) -> int:
    if spec.ensemble:
        return 0
    return max(1, sum(group.count * max(1, len(group.gpus)) for group in spec.instance_groups))


def _seats(spec: ModelSpec) -> int:
    """Return how many requests the instances of a model execute at a time."""
    return max(1, _instances(spec)) * max(1, spec.max_batch_size)
