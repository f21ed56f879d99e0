"""What is told of each request, whichever way it came: one log line and one count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.observability.metrics import Metrics, Stopwatch
from producer_api.observability.request_facts import Told
from shared.errors import HeadraceError

CLIENT_CLOSED = 499  # nginx's status for a client that left before its answer
OUTCOMES = {CLIENT_CLOSED: "left", 503: "unavailable"}

log = structlog.get_logger(__name__)


@dataclass
class Facts:
    """What the layers and a route know of one request."""

    client: Client
    started: float  # by time.perf_counter
    principal: Principal | None = None  # nobody, until the route's rule has settled it
    model: str = ""
    job: str = ""
    prompt: str = ""  # as much of it as the log may show
    answer: Stopwatch | None = None
    awaited: tuple[str, ...] = ()  # the ids of what has that answer
    lasting: bool = False  # the answer goes on without its client

    @property
    def caller(self) -> Principal:
        """Who sent it, and from where; the route's rule has settled it."""
        assert self.principal is not None, "a public route has no caller"
        return replace(self.principal, client=self.client)


class Journal:
    """Of one process.

    Args:
        metrics: where requests are counted.
        told: who is to know that an answer's line is written.
    """

    def __init__(self, metrics: Metrics, told: Told) -> None:
        self._metrics = metrics
        self._told = told

    def failure(self, facts: Facts) -> HeadraceError:
        """Logs the unexpected error at hand; what its client is told of it, which is nothing of its insides."""
        log.exception("request_failed", http_request_id=facts.client.http_request_id)
        return HeadraceError("the server failed; its log knows more by the request id")

    def write(
        self, facts: Facts, *, method: str, route: str, status: int, quiet: bool = False, **more: object
    ) -> None:
        """Write the line of a request that has ended.

        Args:
            status: HTTP's, or the one that it would have over HTTP.
            quiet: log at debug level.
            more: for the line alone.
        """
        answer = facts.answer
        outcome = OUTCOMES.get(status) or ("failed" if status >= 500 else "refused" if status >= 400 else "ok")
        self._metrics.requests.labels(facts.model, route, outcome).inc()
        write: Callable[..., None] = log.debug if quiet else log.info
        told: dict[str, object] = {**more, "model": facts.model, "job_id": facts.job, "prompt": facts.prompt}
        told["trace_id"] = facts.client.trace_id
        if facts.principal is not None:
            told |= {"tenant": facts.principal.tenant, "key": facts.principal.key_id}
        if answer is not None:
            told |= answer.summary()
            for job_id in facts.awaited:
                self._told.end(job_id, goes_on=facts.lasting and not answer.ended)
        write(
            "request",
            http_request_id=facts.client.http_request_id,
            method=method,
            route=route,
            status=status,
            seconds=round(time.perf_counter() - facts.started, 4),
            **{name: value for name, value in told.items() if value not in ("", None)},
        )
