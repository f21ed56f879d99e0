"""Publisher: puts admitted requests into the queue, each with the trace context to continue."""

from __future__ import annotations

from typing import Self

import msgspec

from producer_api.auth.principal import Principal
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.protocol import Request
from shared.queue.interface import Transport
from shared.settings import Settings
from shared.tracing.conventions import send_span
from shared.tracing.interface import Tracer


class Publisher:
    """Publishes requests for one process.

    Args:
        tracer: None where tracing is off; the caller's trace context is then carried unchanged.
        system: name of the queue's system, for traces.
    """

    def __init__(self, transport: Transport, tracer: Tracer | None, system: str) -> None:
        self._transport = transport
        self._tracer = tracer
        self._system = system

    @classmethod
    def from_settings(cls, settings: Settings, backend: Backend) -> Self:
        return cls(backend.transport, backend.tracer, settings.queue)

    async def publish(self, request: Request, caller: Principal) -> None:
        """Queue a request for a caller. Raises as `Transport.publish` does."""
        traceparent = caller.client.traceparent
        if self._tracer is None:
            await self._transport.publish(_within(request, traceparent) if traceparent else request)
            return
        span = self._tracer.start(send_span(request, self._system), traceparent)
        error = "cancelled"
        try:
            await self._transport.publish(_within(request, span.traceparent))
            error = ""
        except HeadraceError as refused:
            error = refused.code
            raise
        finally:
            span.end(error)


def _within(request: Request, traceparent: str) -> Request:
    return msgspec.structs.replace(request, traceparent=traceparent)
