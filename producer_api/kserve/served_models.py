"""Models as the protocol sees them: those of the repository, and those of workers that serve one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.model_catalog import MISS_LIFE_S, SNAPSHOT_LIFE_S
from producer_api.admission.model_state import NO_WORKER
from producer_api.admission.readiness import readiness_of
from producer_api.auth.principal import Principal
from producer_api.services import Context
from shared.errors import InvalidRequest, ModelNotFound, ModelUnavailable, NotSupported, VersionNotFound
from shared.models.worker_registry import ModelInfo, WorkerInfo
from shared.repository.backends import HEADRACE
from shared.repository.spec import ModelSpec, TensorSpec
from shared.repository.status import ModelStatus, VersionStatus

TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"
ONLY_VERSION = "1"  # of a model that has no repository
RETRY_AFTER_S = 1.0
_TEXT_INPUTS = (TensorSpec(name=TEXT_INPUT, datatype="BYTES", dims=(1,)),)
_TEXT_OUTPUTS: Mapping[str, tuple[TensorSpec, ...]] = {  # by task
    "generate": (TensorSpec(name=TEXT_OUTPUT, datatype="BYTES", dims=(1,)),),
    "embed": (TensorSpec(name="embedding", datatype="FP32", dims=(-1,)),),
    "classify": (TensorSpec(name="probs", datatype="FP32", dims=(-1,)),),
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

    @property
    def takes_texts(self) -> bool:
        return self.status.task not in ("predict", None) or self.spec.backend == HEADRACE

    def check_ready(self, *, probed: bool = False) -> None:
        """Raise ModelUnavailable if no worker can run it, and none will load it on demand.

        Args:
            probed: nothing is sent yet, so that a model whose worker restarts is not ready.
        """
        restarting = any(each.reason == NO_WORKER for each in self.versions)
        if self.ready or (self.status.on_demand and not (probed and restarting)):
            return
        what = f"{self.status.name}, version {self.version}," if self.version else self.status.name
        for each in self.versions:
            if each.state == "LOADING":
                raise ModelUnavailable(f"{what} is loading, {each.progress:.0%} done", retry_after=RETRY_AFTER_S)
        reasons = [each.reason for each in self.versions if each.reason] or [
            self.status.reason or "it is not loaded"
        ]
        raise ModelUnavailable(f"{what} is not available: {reasons[-1]}", param="model")

    def check_tensors(self, *, streamed: bool) -> None:
        """Raise InvalidRequest for a model without tensors, NotSupported for one whose responses need a stream."""
        if self.takes_texts:
            raise InvalidRequest(f"{self.status.name} takes texts, not tensors", param="model")
        if self.spec.decoupled and not streamed:
            raise NotSupported(
                f"{self.status.name} is decoupled: use generate_stream or ModelStreamInfer", param="model"
            )


async def visible_models(context: Context, caller: Principal) -> list[ModelStatus]:
    """Return the models that the caller may use, by name. Raises Unavailable."""
    async with redis_deadline():
        found = dict(await context.catalog.repository())
        for info in await context.catalog.models():
            if info.name not in found and info.task != "predict":
                found[info.name] = _of_workers(info, await context.catalog.workers(info.name))
    return [_described(found[name]) for name in sorted(found) if caller.may_use(name)]


async def find(context: Context, caller: Principal, name: str, version: str = "") -> ServedModel:
    """Return a model and a version that it has. Raises PermissionDenied, ModelNotFound, Unavailable.

    A name that is only split is described by the first of its models.
    """
    caller.check_model(name)
    async with redis_deadline():
        split = (await context.catalog.traffic()).splits.get(name)
    if split is not None and name not in await context.catalog.repository():
        caller.check_model(split.branches[0].model)
        found = await _find(context, split.branches[0].model, version)
        return replace(found, status=_renamed(found.status, name))
    return await _find(context, name, version)


async def _find(context: Context, name: str, version: str) -> ServedModel:
    async with redis_deadline():
        for life in (SNAPSHOT_LIFE_S, MISS_LIFE_S):
            if (status := (await context.catalog.repository(life)).get(name)) is not None:
                found = ServedModel(_described(status), version)
                if not version or found.versions:
                    return found
        if (status := await _of_registry(context, name)) is not None and version in ("", ONLY_VERSION):
            return ServedModel(_described(status), version)
    if version:
        raise VersionNotFound(
            f"version {version[:32]!r} of the model {name[:128]!r} does not exist", param="version"
        )
    raise ModelNotFound(f"the model {name[:128]!r} does not exist; see /v2/repository/index", param="model")


async def _of_registry(context: Context, name: str) -> ModelStatus | None:
    """Return the status of a model that workers serve outside of a repository."""
    if name in await context.catalog.repository():
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
    spec = ModelSpec(name=info.name, backend=HEADRACE, platform=info.runtime)
    return ModelStatus(name=info.name, spec=spec, versions=(version,), task=info.task or "generate")


def _renamed(status: ModelStatus, name: str) -> ModelStatus:
    return structs.replace(status, name=name, spec=structs.replace(status.spec, name=name))


def _described(status: ModelStatus) -> ModelStatus:
    """Return the status with the tensors of a model of texts."""
    outputs = _TEXT_OUTPUTS.get(status.task) if status.task is not None else None
    if outputs is None or status.spec.inputs:
        return status
    spec = structs.replace(status.spec, inputs=_TEXT_INPUTS, outputs=outputs)
    return structs.replace(status, spec=spec)
