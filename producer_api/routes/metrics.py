"""The front end's metrics in Prometheus' format."""

from __future__ import annotations

import asyncio

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.services import Context
from shared.errors import PermissionDenied, Unavailable

log = structlog.get_logger(__name__)


async def metrics(context: Context, caller: Principal) -> Response:
    if caller.scopes.models is not None:
        raise PermissionDenied("this key may use some models only, and the metrics are those of all models")
    await _measure(context)
    return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _measure(context: Context) -> None:
    """Bring up to date what is read from Redis."""
    try:
        async with redis_deadline():
            models = [info.name for info in await context.catalog.models()]
            depths = await asyncio.gather(*map(context.backend.transport.depth, models))
            exits = await context.backend.registry.count_exits()
            context.metrics.show_queues(dict(zip(models, depths, strict=True)))
            context.metrics.show_workers((await context.catalog.snapshot()).workers, exits)
        context.metrics.redis_up.set(1)
    except Unavailable as error:
        context.metrics.redis_up.set(0)
        context.metrics.forget_redis()
        log.warning("queues_not_measured", error=error.message)


ADMIN_ENDPOINTS = (
    Endpoint(
        "GET",
        "/metrics",
        metrics,
        group=None,
        admin=True,
        logged=False,
        summary="Metrics, in Prometheus' format",
        tag="Operation",
        responses=(ResponseDoc("the metrics"),),
    ),
)
