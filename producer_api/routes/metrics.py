"""The front end's metrics in Prometheus' format."""

from __future__ import annotations

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.services import Context
from shared.errors import Unavailable

log = structlog.get_logger(__name__)


async def metrics(context: Context) -> Response:
    await _measure(context)
    return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _measure(context: Context) -> None:
    """Bring up to date what is read from Redis."""
    try:
        async with redis_deadline():
            for info in await context.catalog.models():
                context.metrics.show_depth(info.name, await context.backend.transport.depth(info.name))
            context.metrics.show_workers((await context.catalog.snapshot()).workers)
            context.metrics.worker_exits.counts = await context.backend.registry.count_exits()
        context.metrics.redis_up.set(1)
    except Unavailable as error:
        context.metrics.redis_up.set(0)
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
