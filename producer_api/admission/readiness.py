"""Decides from the workers' heartbeats whether a model is served, and why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from shared.models.worker_registry import UNHEALTHY_STATUS, WorkerExit, WorkerInfo
from shared.queue.survey import Gate
from shared.repository.status import UNLOADED, ModelStatus

ReasonCode = Literal[
    "server_draining",
    "redis_unreachable",
    "no_worker",
    "loading",
    "sleeping",
    "workers_draining",
    "hung_workers",
    "worker_fault",
    "too_few_workers",
    "load_failed",
    "queue_paused",
    "queue_draining",
]


class Reason(msgspec.Struct, frozen=True):
    """A reason why a model is not served, or by fewer workers than it should be."""

    code: ReasonCode
    message: str


class ModelReadiness(msgspec.Struct, frozen=True):
    """Readiness of one model.

    Attributes:
        progress: of loading, from 0 to 1, of the worker that has loaded most.
        reasons: all that is wrong, also with the workers of a model that is served by others.
    """

    ready: bool
    progress: float
    reasons: tuple[Reason, ...]


def readiness_of(model: str, workers: Sequence[WorkerInfo], *, needed: int, absence: str) -> ModelReadiness:
    """Return the readiness of a model.

    Args:
        workers: all that serve the model, or will.
        needed: number of ready workers without which the model is not ready.
        absence: says in a sentence that there is no worker.
    """
    count = sum(worker.state == "ready" and not worker.fault for worker in workers)
    ready = count >= needed
    progress = 1.0 if ready else max((worker.progress for worker in workers), default=0.0)
    found: list[Reason] = []
    if hung := sum(worker.state == "hung" for worker in workers):
        found.append(
            Reason("hung_workers", f"hung workers of {model} are being replaced: {hung} of {len(workers)}")
        )
    if not ready:
        found += _shortage(model, workers, absence)
        if 0 < count < needed:
            found.append(Reason("too_few_workers", f"{count} of {needed} workers that {model} needs are ready"))
    return ModelReadiness(ready, progress, tuple(found))


def closure_of(model: str, gate: Gate) -> tuple[Reason, ...]:
    """Return why requests of a model wait or are refused although it is served: an operator closed its queue."""
    match gate:
        case "paused":
            return (Reason("queue_paused", f"the queue of {model} is paused: its requests wait"),)
        case "draining":
            return (Reason("queue_draining", f"the queue of {model} drains: new requests are refused"),)
        case "open":
            return ()


def readiness_of_repository(statuses: Sequence[ModelStatus]) -> ModelReadiness:
    """Return the readiness of a model repository: it is ready once all models that load have done so, or failed."""
    if not statuses:
        return ModelReadiness(False, 0.0, (Reason("no_worker", "no worker serves the model repository"),))
    found: list[Reason] = []
    shares: list[float] = []
    for status in statuses:
        loading = [version.progress for version in status.versions if version.state == "LOADING"]
        if loading and not status.ready:
            shares.append(max(loading))
            found.append(Reason("loading", f"{status.name} is loading, {max(loading):.0%} done"))
        reasons = [status.reason, *(each.reason for each in status.versions if each.state == "UNAVAILABLE")]
        failures = [reason for reason in reasons if reason and reason != UNLOADED]
        found += [Reason("load_failed", f"{status.name} cannot be loaded: {failures[-1]}")] if failures else []
    return ModelReadiness(not shares, min(shares, default=1.0), tuple(found))


def _shortage(model: str, workers: Sequence[WorkerInfo], absence: str) -> list[Reason]:
    """Return why workers are missing, a reason for each state in which some are."""
    if not workers:
        return [Reason("no_worker", absence)]
    found: list[Reason] = []
    if loading := [worker.progress for worker in workers if worker.state == "loading"]:
        found.append(Reason("loading", f"{model} is loading, {max(loading):.0%} done"))
    if any(worker.state == "sleeping" for worker in workers):
        found.append(Reason("sleeping", f"{model} is asleep"))
    found += [Reason("worker_fault", fault) for fault in dict.fromkeys(worker.fault for worker in workers) if fault]
    if any(worker.state == "draining" for worker in workers):
        found.append(Reason("workers_draining", f"workers of {model} are shutting down"))
    return found


def absence_of(model: str, last: WorkerExit | None, now: float) -> str:
    """Return a sentence about a model without workers: how the last one ended, as its supervisor recorded it.

    Args:
        now: seconds since the epoch, by the server's clock.
    """
    absence = f"no worker serves {model}"
    if last is None:
        return absence
    end = f"exited with code {last.status}" if last.status >= 0 else f"was killed by signal {-last.status}"
    cause = ", because its engine hung," if last.status == UNHEALTHY_STATUS else ""
    left = math.ceil(last.restart_at - now)
    restart = f"restart in {left} s" if left > 0 else "restarting now"
    return f"{absence}; the last one {end}{cause} {max(0, round(now - last.at))} s ago, {restart}"
