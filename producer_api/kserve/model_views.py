"""Metadata, index and statistics of models, from their status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from producer_api.kserve.served_models import ServedModel
from producer_api.schemas.kserve import (
    UNSET,
    BatchStatistics,
    Duration,
    InferStatistics,
    MemoryUsage,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    TensorMetadata,
)
from shared.repository import status as repository
from shared.repository.spec import ModelSpec, TensorSpec
from shared.repository.status import ModelStatus
from shared.version import VERSION

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
]


def server_metadata() -> ServerMetadata:
    return ServerMetadata("headrace", VERSION, EXTENSIONS)


def metadata(model: ServedModel) -> ModelMetadata:
    spec = model.spec
    return ModelMetadata(
        spec.name,
        [model.version] if model.version else [each.version for each in model.status.ready],
        spec.platform or spec.backend or "ensemble",
        _tensors(spec.inputs, batched=spec.max_batch_size > 0),
        _tensors(spec.outputs, batched=spec.max_batch_size > 0),
    )


def config_json(spec: ModelSpec) -> str:
    """Return Triton's ModelConfig of a model, as JSON."""
    from shared.repository.config_writing import config_from_spec  # noqa: PLC0415  protobuf is large
    from shared.repository.model_config import config_to_json  # noqa: PLC0415

    return config_to_json(config_from_spec(spec))


def index(models: Iterable[ModelStatus], *, ready_only: bool) -> list[ModelIndex]:
    """Return the versions of all models, and the models without one."""
    found = []
    for model in models:
        for each in model.versions:
            if each.state == "READY" or not ready_only:
                found.append(ModelIndex(model.name, each.version, each.state, each.reason or UNSET))
        if not model.versions and not ready_only:
            found.append(ModelIndex(model.name, reason=model.reason or UNSET))
            if model.reason:
                found[-1].state = "UNAVAILABLE"
    return found


def statistics(models: Sequence[ServedModel]) -> list[ModelStatistics]:
    """Return the statistics of all ready versions of models of the repository."""
    return [
        _version_statistics(model.spec.name, each.version, each.statistics)
        for model in models
        for each in model.versions
        if each.state == "READY"
    ]


def _tensors(specs: Iterable[TensorSpec], *, batched: bool) -> list[TensorMetadata]:
    return [TensorMetadata(each.name, each.datatype, [-1] * batched + list(each.dims)) for each in specs]


def _version_statistics(name: str, version: str, found: repository.VersionStatistics) -> ModelStatistics:
    memory = [MemoryUsage("CPU", 0, found.memory_bytes)] if found.memory_bytes else []
    durations = {each: _duration(getattr(found, each)) for each in InferStatistics.__struct_fields__}
    return ModelStatistics(
        name,
        version,
        found.last_inference,
        found.inference_count,
        found.execution_count,
        InferStatistics(**durations),
        {},
        [_batch(each) for each in found.batches],
        memory,
    )


def _batch(found: repository.BatchStatistics) -> BatchStatistics:
    return BatchStatistics(
        found.batch_size,
        _duration(found.compute_input),
        _duration(found.compute_infer),
        _duration(found.compute_output),
    )


def _duration(found: repository.Duration) -> Duration:
    return Duration(found.count, found.ns)
