"""For machines that watch us: alive, and ready."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import msgspec
from starlette.responses import Response

from producer_api.admission.deadline import patience
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_answer
from producer_api.http.open_streams import stopping
from producer_api.services import Context
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerExit, WorkerInfo


class WorkerState(msgspec.Struct):
    """As its last heartbeat told: sequences in and before the batch, KV blocks in use and in all."""

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
    """`progress` from 0 to 1 is the furthest worker's; `reason` is there when not ready."""

    ready: bool
    model: str
    progress: float
    workers: list[WorkerState]
    reason: str | None = None


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


async def health() -> Response:
    return json_answer(Health())


async def ready(context: Context) -> Response:
    found = await readiness(context)
    headers = {} if found.ready else {"retry-after": "1"}
    return json_answer(found, 200 if found.ready else 503, headers)


async def readiness(context: Context) -> Readiness:
    """Whether the default model is served, and by whom; while the process stops, it is not."""
    model = context.catalog.served_model
    if context.attendance.draining:
        return Readiness(False, model, 1.0, [], stopping().message)
    try:
        async with patience():
            workers = await context.catalog.workers(model)
            reason = f"{model} is loading" if workers else await _absence(context, model)
    except Unavailable as error:
        return Readiness(False, model, 0.0, [], error.message)
    states = [WorkerState.of(worker) for worker in workers]
    if any(worker.state == "ready" for worker in workers):
        return Readiness(True, model, 1.0, states)
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
    summary="Does this process live?",
    responses=(ResponseDoc("it does", Health),),
)
ENDPOINTS = (
    HEALTH,
    _probe(
        "GET",
        "/ready",
        ready,
        summary="Is the model served?",
        responses=(
            ResponseDoc("a worker serves the model", Readiness),
            ResponseDoc("not yet, or not any more", Readiness, status=503),
        ),
    ),
)
