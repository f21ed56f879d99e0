"""State of a model as its callers see it, from its workers' heartbeats and from the repository's statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from shared.errors import HeadraceError, ModelNotFound, ModelUnavailable
from shared.models.worker_registry import WorkerInfo
from shared.repository.status import UNLOADED, ModelStatus

NO_WORKER = "no worker serves it"
StateName = Literal["ready", "loading", "on_demand", "sleeping", "unavailable"]


class ModelState(msgspec.Struct, frozen=True):
    """State of one model.

    Attributes:
        state: on_demand: it is loaded when requests wait for it; unavailable: no worker serves it.
        reason: why it is unavailable, if that is known.
        progress: of loading, from 0 to 1.
    """

    state: StateName
    progress: float = 1.0
    reason: str | None = None


def state_of(workers: Sequence[WorkerInfo], status: ModelStatus | None, *, asleep: bool) -> ModelState:
    """Return the state of a model.

    Args:
        workers: those of the model.
        status: its status in the repository; None for a model of another worker.
    """
    if asleep:
        return ModelState("sleeping")
    loading = [worker.progress for worker in workers if worker.state == "loading"]
    loading += [each.progress for each in status.versions if each.state == "LOADING"] if status is not None else []
    if any(worker.state == "ready" for worker in workers):
        return ModelState("ready")
    if loading:
        return ModelState("loading", max(loading))
    if any(worker.state == "sleeping" for worker in workers):
        return ModelState("sleeping")
    if status is not None and status.on_demand:
        return ModelState("on_demand", 0.0)
    return ModelState("unavailable", 0.0, None if status is None else _reason(status))


def waiting(status: ModelStatus) -> ModelStatus:
    """Return the status of a model whose worker is gone for a moment: it takes requests if it was served."""
    versions = tuple(
        msgspec.structs.replace(each, state="UNAVAILABLE", reason=NO_WORKER) for each in status.versions
    )
    return msgspec.structs.replace(status, versions=versions, on_demand=status.on_demand or bool(status.ready))


def refusal_of(status: ModelStatus) -> HeadraceError | None:
    """Return the error for requests to a model of the repository; None if it takes requests now or soon."""
    served = any(version.state in ("READY", "LOADING") for version in status.versions)
    if served or status.on_demand:
        return None
    reason = _reason(status)
    if reason is None or reason == UNLOADED:
        return ModelNotFound(f"the model {status.name!r} is not loaded; see /v1/models", param="model")
    return ModelUnavailable(f"{status.name} cannot be loaded: {reason}", param="model")


def _reason(status: ModelStatus) -> str | None:
    found = (status.reason, *(version.reason for version in reversed(status.versions)))
    return next((reason for reason in found if reason), None)
