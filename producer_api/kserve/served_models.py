"""Models as the protocol sees them: those of the repository, and those of workers that serve one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.readiness import readiness_of
from producer_api.admission.repository_catalog import MISS_LIFE_S, SNAPSHOT_LIFE_S
from producer_api.auth.principal import Principal
from producer_api.services import Context
from shared.errors import InvalidRequest, ModelNotFound, NotSupported, Unavailable
from shared.models.worker_registry import ModelInfo, Task, WorkerInfo
from shared.repository.spec import ModelSpec, TensorSpec
from shared.repository.status import ModelStatus, VersionStatus

TEXT_INPUT, TEXT_OUTPUT, EMBEDDING = "text_input", "text_output", "embedding"
ONLY_VERSION = "1"  # of a model that has no repository
RETRY_AFTER_S = 1.0
_TEXT_INPUTS = (TensorSpec(name=TEXT_INPUT, datatype="BYTES", dims=(1,)),)
_TEXT_OUTPUTS: Mapping[Task, tuple[TensorSpec, ...]] = {
    "generate": (TensorSpec(name=TEXT_OUTPUT, datatype="BYTES", dims=(1,)),),
    "embed": (TensorSpec(name=EMBEDDING, datatype="FP32", dims=(-1,)),),
}


@dataclass(frozen=True)
class ServedModel:
    """A model that a request named, and the version that it asked for, "" for the newest."""

    status: ModelStatus
    version: str

    @property
    def spec(self) -> ModelSpec:
        return self.status.spec

    @property
    def versions(self) -> Sequence[VersionStatus]:
        """Return the version that was asked for, or all."""
        return [each for each in self.status.versions if self.version in ("", each.version)]

    @property
    def ready(self) -> bool:
        return any(each.state == "READY" for each in self.versions)

    def check_ready(self) -> None:
        """Raise Unavailable if no worker can run it, and none will load it on demand."""
        if self.ready or (self.status.on_demand and not self.version):
            return
        what = f"{self.status.name}, version {self.version}," if self.version else self.status.name
        for each in self.versions:
            if each.state == "LOADING":
                raise Unavailable(f"{what} is loading, {each.progress:.0%} done", retry_after=RETRY_AFTER_S)
        reasons = [each.reason for each in self.versions if each.reason] or [
            self.status.reason or "it is not loaded"
        ]
        raise Unavailable(f"{what} is not available: {reasons[-1]}", param="model")

    def check_tensors(self, *, streamed: bool) -> None:
        """Raise InvalidRequest for a model without tensors, NotSupported for one whose responses need a stream."""
        if self.status.task not in ("predict", None):
            raise InvalidRequest(f"{self.status.name} takes texts, not tensors", param="model")
        if self.spec.decoupled and not streamed:
            raise NotSupported(
                f"{self.status.name} is decoupled: use generate_stream or ModelStreamInfer", param="model"
            )


async def visible_models(context: Context, caller: Principal) -> list[ModelStatus]:
    """Return the models that the caller may use, by name. Raises Unavailable."""
    async with redis_deadline():
        found = dict(await context.repository.statuses())
        for info in await context.catalog.models():
            if info.name not in found and info.task != "predict":
                found[info.name] = _of_workers(info, await context.catalog.workers(info.name))
    return [_described(found[name]) for name in sorted(found) if caller.may_use(name)]


async def find(context: Context, caller: Principal, name: str, version: str = "") -> ServedModel:
    """Return a model and a version that it has. Raises PermissionDenied, ModelNotFound, Unavailable."""
    caller.check_model(name)
    async with redis_deadline():
        for life in (SNAPSHOT_LIFE_S, MISS_LIFE_S):
            if (status := (await context.repository.statuses(life)).get(name)) is not None:
                found = ServedModel(_described(status), version)
                if not version or found.versions:
                    return found
        if (status := await _of_registry(context, name)) is not None and version in ("", ONLY_VERSION):
            return ServedModel(_described(status), version)
    what = f"version {version[:32]!r} of the model {name[:128]!r}" if version else f"the model {name[:128]!r}"
    raise ModelNotFound(f"{what} does not exist; see /v2/repository/index", param="model")


async def _of_registry(context: Context, name: str) -> ModelStatus | None:
    """Return the status of a model that workers serve outside of a repository."""
    if name in await context.repository.statuses():
        return None
    for info in await context.catalog.models():
        if info.name == name and info.task != "predict":
            return _of_workers(info, await context.catalog.workers(name))
    return None


def _of_workers(info: ModelInfo, workers: Sequence[WorkerInfo]) -> ModelStatus:
    found = readiness_of(info.name, workers, needed=1, absence=f"no worker serves {info.name}")
    loading = not found.ready and any(worker.state == "loading" for worker in workers)
    version = VersionStatus(
        version=ONLY_VERSION,
        state="READY" if found.ready else "LOADING" if loading else "UNAVAILABLE",
        reason="" if found.ready else "; ".join(reason.message for reason in found.reasons),
        progress=found.progress,
    )
    spec = ModelSpec(name=info.name, backend="headrace", platform=info.runtime)
    return ModelStatus(name=info.name, spec=spec, versions=(version,), task=info.task or "generate")


def _described(status: ModelStatus) -> ModelStatus:
    """Return the status with the tensors of a model of texts."""
    outputs = _TEXT_OUTPUTS.get(status.task) if status.task is not None else None
    if outputs is None or status.spec.inputs:
        return status
    spec = structs.replace(status.spec, inputs=_TEXT_INPUTS, outputs=outputs)
    return structs.replace(status, spec=spec)
