"""Probes for monitoring: liveness, readiness, and the health of the installation.

Worker details are for those who run the installation: they are served on the admin port, and without `auth`. The
public probes of a server with `auth` have the status and the reasons only.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.readiness import (
    ModelReadiness,
    Reason,
    absence_of,
    readiness_of,
    readiness_of_repository,
)
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.http.open_streams import shutdown_error
from producer_api.services import Context
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerInfo, WorkerState
from shared.settings import RuntimeName


class WorkerHealth(msgspec.Struct):
    """Worker as of its last heartbeat.

    Attributes:
        progress: of loading, from 0 to 1.
        active_requests: requests that it holds.
        running, waiting: sequences of its engine.
        kv_use: share of the KV cache's blocks in use; null without a KV cache.
        gpu_memory_used: bytes; null without a GPU.
        step_age: seconds since the engine's current step began; null between steps.
        heartbeat_age: seconds since the heartbeat.
    """

    id: str
    model: str
    runtime: RuntimeName
    state: WorkerState
    model_loaded: bool
    progress: float
    active_requests: int
    running: int
    waiting: int
    blocks_used: int
    blocks_total: int
    kv_use: float | None
    gpu_memory_used: int | None
    step_age: float | None
    heartbeat_age: float | None

    @classmethod
    def of(cls, worker: WorkerInfo) -> WorkerHealth:
        computed: dict[str, Any] = {
            "model_loaded": worker.state not in ("loading", "sleeping"),
            "kv_use": round(worker.blocks_used / worker.blocks_total, 4) if worker.blocks_total else None,
        }
        copied = [name for name in cls.__struct_fields__ if name not in computed]
        return cls(**computed, **{name: getattr(worker, name) for name in copied})


class Liveness(msgspec.Struct):
    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct):
    """Readiness of the default model; without one, of the model repository.

    Attributes:
        model: the default model; empty without one.
        progress: of loading, from 0 to 1, of the worker that has loaded most.
        reason: the messages of all reasons; null if it is ready.
        workers: of the model; absent for callers who may not see them.
    """

    ready: bool
    model: str
    progress: float
    reasons: list[Reason]
    reason: str | None
    workers: list[WorkerHealth] | UnsetType = UNSET


class Health(msgspec.Struct):
    """Health of the installation.

    Attributes:
        status: ok; degraded: the default model is served, but not all is well; unavailable: it is not served.
        reasons: all that is not well.
        workers: of all models; absent for callers who may not see them.
        error, error_type: as in TGI, of an installation that is unavailable.
    """

    status: Literal["ok", "degraded", "unavailable"]
    reasons: list[Reason]
    workers: list[WorkerHealth] | UnsetType = UNSET
    error: str | UnsetType = UNSET
    error_type: str | UnsetType = UNSET


class Version(msgspec.Struct):
    version: str


async def version(request: Request) -> Response:
    return json_response(Version(request.app.version))


async def live() -> Response:
    return json_response(Liveness())


async def health(context: Context) -> Response:
    return _health_response(await _health(context, detailed=not context.settings.auth))


async def health_in_detail(context: Context) -> Response:
    return _health_response(await _health(context, detailed=True))


def _health_response(found: Health) -> Response:
    if found.status != "unavailable":
        return json_response(found)
    found.error, found.error_type = "unhealthy", "healthcheck"
    return json_response(found, 503)


async def ready(context: Context) -> Response:
    return _ready_response(await readiness(context), detailed=not context.settings.auth)


async def ready_in_detail(context: Context) -> Response:
    return _ready_response(await readiness(context), detailed=True)


def _ready_response(found: Readiness, *, detailed: bool) -> Response:
    if not detailed:
        found.workers = UNSET
    headers = {} if found.ready else {"retry-after": "1"}
    return json_response(found, 200 if found.ready else 503, headers)


async def readiness(context: Context) -> Readiness:
    """Return whether enough workers serve the default model, or the repository; during a shutdown, not ready."""
    model = context.catalog.served_model
    found, workers = await _state_of(context, model)
    reasons = [] if found.ready else list(found.reasons)
    message = "; ".join(reason.message for reason in reasons) or None
    listed = [WorkerHealth.of(worker) for worker in workers if model in ("", worker.model)]
    return Readiness(found.ready, model, found.progress, reasons, message, listed)


async def _health(context: Context, *, detailed: bool) -> Health:
    found, workers = await _state_of(context, context.catalog.served_model)
    reasons = list(found.reasons)
    if found.ready and (embedder := context.catalog.embedding_model) is not None:
        reasons += (await _state_of(context, embedder))[0].reasons
    if found.ready and context.catalog.served_model and context.settings.model_repository is not None:
        reasons += (await _state_of(context, ""))[0].reasons
    status: Literal["ok", "degraded", "unavailable"] = "degraded" if reasons else "ok"
    listed = [WorkerHealth.of(worker) for worker in workers] if detailed else UNSET
    return Health(status if found.ready else "unavailable", reasons, listed)


async def _state_of(context: Context, model: str) -> tuple[ModelReadiness, tuple[WorkerInfo, ...]]:
    """Return the readiness of a model, or of the repository for "", and the workers of all models."""
    if context.open_answers.draining:
        return ModelReadiness(False, 1.0, (Reason("server_draining", shutdown_error().message),)), ()
    try:
        async with redis_deadline():
            snapshot = await context.catalog.snapshot()
            workers = snapshot.workers
            if not model:
                return readiness_of_repository(list(snapshot.repository.values())), workers
            own = [worker for worker in workers if worker.model == model]
            absence = "" if own else await _absence(context, model)
            asleep = model in await context.catalog.asleep()
    except Unavailable as error:
        return ModelReadiness(False, 0.0, (Reason("redis_unreachable", error.message),)), ()
    if asleep:
        return ModelReadiness(False, 0.0, (Reason("sleeping", f"{model} is asleep"),)), workers
    return readiness_of(model, own, needed=_needed(context, model), absence=absence), workers


def _needed(context: Context, model: str) -> int:
    """Return how many workers a model needs to be ready: none if its requests may wait for an autoscaler."""
    return max(
        int(model not in context.catalog.scalable),
        context.settings.min_workers if model == context.catalog.served_model else 0,
    )


async def _absence(context: Context, model: str) -> str:
    last = await context.backend.registry.last_exit(model)
    return absence_of(model, last, await context.backend.token_log.now() if last else 0.0)


_probe = partial(Endpoint, group=None, logged=False, while_draining=True, tag="Operation")
LIVE = _probe(
    "GET",
    "/live",
    live,
    summary="Is this process alive?",
    responses=(ResponseDoc("it is", Liveness),),
)
HEALTH = _probe(
    "GET",
    "/health",
    health,
    summary="Is the installation well?",
    responses=(
        ResponseDoc("it is, or it is degraded", Health),
        ResponseDoc("the model is not served", Health, status=503),
    ),
)
READY = _probe(
    "GET",
    "/ready",
    ready,
    summary="Is the model served?",
    responses=(
        ResponseDoc("enough workers serve the model", Readiness),
        ResponseDoc("not yet, or no longer", Readiness, status=503),
    ),
)
ALIASES = {"/ping": LIVE, "/healthz": LIVE, "/livez": LIVE, "/readyz": READY}  # of SageMaker and Kubernetes
ENDPOINTS = (
    LIVE,
    HEALTH,
    READY,
    *(_probe("GET", path, endpoint.handler) for path, endpoint in ALIASES.items()),
    _probe("POST", "/ping", live),
    _probe(
        "GET",
        "/version",
        version,
        summary="Get the server's version",
        responses=(ResponseDoc("the version", Version),),
    ),
)
ADMIN_ENDPOINTS = (
    LIVE,
    replace(HEALTH, handler=health_in_detail, admin=True),
    replace(READY, handler=ready_in_detail, admin=True),
)
