"""Handling of every gRPC call: concurrency limit, authentication, error status, request log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from producer_api.admission.access import authorize
from producer_api.auth.client_address import TrustedProxies
from producer_api.http.errors import FieldNames, renamed
from producer_api.http.open_streams import shutdown_error
from producer_api.observability.request_log import CLIENT_CLOSED, RequestFacts
from producer_api.rpc.call import Call, RpcContext, address_of, metadata_headers
from producer_api.rpc.errors import status_of
from producer_api.services import Context
from shared.accounts.scopes import ROUTES
from shared.errors import HeadraceError, Unavailable
from shared.tracing.conventions import RPC_STATUS, rpc_span


@dataclass(frozen=True)
class Method:
    """A method of a service.

    Attributes:
        name: its name in the service definition.
        group: the scope that a caller needs, one of ROUTES; None for a public method, or one for administrators.
        answer: reads the call's message, or its messages, and writes the answer.
        admin: only for keys that may administer.
        charged: a call counts against the caller's limits.
        field_names: what its messages call the fields of a job.
    """

    name: str
    group: str | None
    answer: Callable[[Call], Awaitable[None]]
    admin: bool = False
    charged: bool = False
    field_names: FieldNames = ()

    def __post_init__(self) -> None:
        assert self.group is None or self.group in ROUTES, (
            f"{self.name}: group {self.group!r} is not one of {ROUTES}"
        )


@dataclass(frozen=True)
class Service:
    """A service: its full name, and its methods."""

    name: str
    methods: tuple[Method, ...]


class MethodHandlers:
    """Makes gRPC handlers of services.

    Args:
        most: calls at a time, of all methods together.
    """

    def __init__(self, context: Context, most: int) -> None:
        self._context = context
        self._proxies = TrustedProxies(context.settings.trusted_proxies)
        self._most = most
        self._open = 0

    def handlers(self, service: Service) -> grpc.GenericRpcHandler:
        """Return the handlers of all methods of a service."""
        by_name = {each.name: self._handler(f"/{service.name}/{each.name}", each) for each in service.methods}
        return grpc.method_handlers_generic_handler(service.name, by_name)

    def _handler(self, route: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler of byte streams, even for one message: so the time to read it can be limited."""

        async def handle(_: object, rpc: RpcContext) -> None:
            await self._handle(route, method, rpc)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _handle(self, route: str, method: Method, rpc: RpcContext) -> None:
        facts = RequestFacts(
            self._proxies.client(address_of(rpc.peer()), metadata_headers(rpc)), time.perf_counter()
        )
        call = Call(self._context, rpc, facts, charged=method.charged)
        self._context.request_logger.begin(facts, partial(rpc_span, route))
        http_status, refusal = 200, None
        try:
            with self._place():
                await self._answer(method, call)
        except HeadraceError as error:
            refusal = error
        except asyncio.CancelledError:
            http_status = CLIENT_CLOSED
            raise
        except Exception:  # noqa: BLE001  logged below
            refusal = self._context.request_logger.failure(facts)
        finally:
            facts.refusal = "" if refusal is None else refusal.code
            if facts.span is not None:
                facts.span.set({RPC_STATUS: _status_name(refusal, cancelled=http_status == CLIENT_CLOSED)})
            self._context.request_logger.write(
                facts, method="gRPC", route=route, status=http_status if refusal is None else refusal.status
            )
        if refusal is not None:
            status = status_of(renamed(refusal, method.field_names))
            await rpc.abort(status.code, status.details, (*await call.metadata(), *status.trailing_metadata))

    async def _answer(self, method: Method, call: Call) -> None:
        if self._context.open_answers.draining:
            raise shutdown_error()
        if method.group is not None or method.admin:
            given = call.metadata_values("authorization")
            await authorize(self._context.authenticate, call.facts, given, group=method.group, admin=method.admin)
        await method.answer(call)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self._most:
            raise Unavailable(f"the server already has {self._most} open calls", retry_after=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _status_name(refusal: HeadraceError | None, *, cancelled: bool) -> str:
    """Return gRPC's name of the status that a call ended with."""
    if refusal is not None:
        return status_of(refusal).code.name
    return "CANCELLED" if cancelled else "OK"
