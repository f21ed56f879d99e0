"""Checks of the models that are being served: the workers of each, their runtime, limits and fingerprint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from headrace.doctor.finding import Finding
from shared.errors import Unavailable
from shared.models.worker_registry import ModelInfo, Registry, WorkerInfo
from shared.settings import Settings


async def examine_models(registry: Registry, settings: Settings) -> list[Finding]:
    """Check each known model; a user without the permission gets one finding."""
    try:
        models, workers = await registry.models(), await registry.workers()
    except Unavailable as error:
        return [Finding("models", "warning", error.message, "run doctor once as an administrator")]
    return check_models(models, workers, mixed=settings.mixed_workers == "allow")


def check_models(models: Sequence[ModelInfo], workers: Sequence[WorkerInfo], *, mixed: bool) -> list[Finding]:
    """Check each known model and each that a worker loads. `mixed`: workers of a model may disagree."""
    names = sorted({model.name for model in models} | {worker.model for worker in workers})
    found = [
        _model(f"model {name}", [worker for worker in workers if worker.model == name], mixed=mixed)
        for name in names
    ]
    return found or [Finding("models", "ok", "no worker has served a model in the last day")]


def _model(what: str, workers: Sequence[WorkerInfo], *, mixed: bool) -> Finding:
    states = Counter(worker.state for worker in workers)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    kinds = sorted({_kind(worker) for worker in workers if worker.fingerprint})
    found = "; ".join([f"workers: {counts}", *kinds])
    identities = {(each.runtime, each.fingerprint) for each in workers if each.fingerprint and _stays(each)}
    if len(identities) > 1 and not mixed:
        remedy = "restart the workers with the same weights and settings, or set mixed_workers to allow"
        return Finding(what, "warning", f"the workers disagree: {found}", remedy)
    if not states["ready"] and not states["sleeping"]:
        return Finding(what, "warning", found, "requests wait until a worker is ready: start one, or see its log")
    return Finding(what, "ok", found)


def _kind(worker: WorkerInfo) -> str:
    return (
        f"{worker.runtime}, context {worker.max_model_len} tokens, {worker.max_num_seqs} sequences at a time in "
        f"each worker, fingerprint {worker.fingerprint}"
    )


def _stays(worker: WorkerInfo) -> bool:
    return worker.state != "draining"
