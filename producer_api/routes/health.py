"""Probes for monitoring: liveness and readiness."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.http.open_streams import shutdown_error
from producer_api.services import Context
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerExit, WorkerInfo


class WorkerState(msgspec.Struct):
    """Worker as of its last heartbeat: sequences running and waiting, KV blocks in use and in total."""

    id: str
    state: str
    progress: float
    running: int
    waiting: int
    blocks_used: int
    blocks_total: int

    @classmethod
    def of(cls, worker: WorkerInfo) -> WorkerState:
        return cls(**{name: getattr(worker, name) for name in cls.__struct_fields__})


class Readiness(msgspec.Struct):
    """Readiness of the default model; `progress`, from 0 to 1, is of the worker that has loaded most."""

    ready: bool
    model: str
    progress: float
    workers: list[WorkerState]
    reason: str | None = None


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


class Version(msgspec.Struct):
    version: str


async def version(request: Request) -> Response:
    return json_response(Version(request.app.version))


async def health() -> Response:
    return json_response(Health())


async def ready(context: Context) -> Response:
    found = await readiness(context)
    headers = {} if found.ready else {"retry-after": "1"}
    return json_response(found, 200 if found.ready else 503, headers)


async def readiness(context: Context) -> Readiness:
    """Return whether a worker serves the default model; during a shutdown, not ready."""
    model = context.catalog.served_model
    if context.open_answers.draining:
        return Readiness(False, model, 1.0, [], shutdown_error().message)
    try:
        async with redis_deadline():
            workers = await context.catalog.workers(model)
            reason = f"{model} is loading" if workers else await _absence(context, model)
    except Unavailable as error:
        return Readiness(False, model, 0.0, [], error.message)
    states = [WorkerState.of(worker) for worker in workers]
    serving = [worker for worker in workers if worker.state == "ready"]
    if any(not worker.fault for worker in serving):
        return Readiness(True, model, 1.0, states)
    if serving:
        return Readiness(False, model, 1.0, states, serving[0].fault)
    progress = max((worker.progress for worker in workers), default=0.0)
    return Readiness(False, model, progress, states, reason)


async def _absence(context: Context, model: str) -> str:
    """Return why no worker serves the model, as far as its supervisor has recorded it. Raises Unavailable."""
    absence = f"no worker serves {model}"
    last = await context.backend.registry.last_exit(model)
    return absence if last is None else f"{absence}; {_described(last, await context.backend.token_log.now())}"


def _described(last: WorkerExit, now: float) -> str:
    """Return the last exit in words, without anything of the process."""
    end = f"exited with code {last.status}" if last.status >= 0 else f"was killed by signal {-last.status}"
    left = math.ceil(last.restart_at - now)
    restart = f"restart in {left} s" if left > 0 else "restarting now"
    return f"the last one {end} {max(0, round(now - last.at))} s ago, {restart}"


_probe = partial(Endpoint, group=None, logged=False, while_draining=True, tag="Operation")
HEALTH = _probe(
    "GET",
    "/health",
    health,
    summary="Is this process alive?",
    responses=(ResponseDoc("it is", Health),),
)
READY = _probe(
    "GET",
    "/ready",
    ready,
    summary="Is the model served?",
    responses=(
        ResponseDoc("a worker serves the model", Readiness),
        ResponseDoc("not yet, or no longer", Readiness, status=503),
    ),
)
ALIASES = {"/ping": HEALTH, "/healthz": HEALTH, "/livez": HEALTH, "/readyz": READY}  # of SageMaker and Kubernetes
ENDPOINTS = (
    HEALTH,
    READY,
    *(_probe("GET", path, endpoint.handler) for path, endpoint in ALIASES.items()),
    _probe("POST", "/ping", health),
    _probe(
        "GET",
        "/version",
        version,
        summary="Get the server's version",
        responses=(ResponseDoc("the version", Version),),
    ),
)
