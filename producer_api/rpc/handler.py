"""What surrounds every method: how much at a time, who calls, errors in gRPC's words, one line in the log.

It knows nothing of what a method does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from producer_api.auth.client_address import Proxies
from producer_api.http.access import authorize
from producer_api.http.open_streams import shutdown_error
from producer_api.observability.request_log import CLIENT_CLOSED, Facts
from producer_api.rpc.call import Call, Servicer, address_of, headers
from producer_api.rpc.errors import status_of
from producer_api.services import Context
from shared.accounts.scopes import ROUTES
from shared.errors import HeadraceError, Unavailable


@dataclass(frozen=True)
class Method:
    """A method of the service.

    Attributes:
        name: as the service's definition has it.
        group: one of ROUTES, of those that a caller may use.
        answer: reads the call's message, and writes what it is told.
        charged: its callers' limits are charged.
    """

    name: str
    group: str
    answer: Callable[[Call], Awaitable[None]]
    charged: bool = False

    def __post_init__(self) -> None:
        assert self.group in ROUTES, f"{self.name}: group {self.group!r} is not one of {ROUTES}"


class Endpoints:
    """Makes methods into what gRPC calls.

    Args:
        service: its full name.
        most: calls at a time, of all methods together.
    """

    def __init__(self, context: Context, service: str, most: int) -> None:
        self._context = context
        self._service = service
        self._proxies = Proxies(context.settings.trusted_proxies)
        self._most = most
        self._open = 0

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """As streams of bytes, also where it is one message: then the time that it takes is ours to bound."""

        async def handle(_: object, rpc: Servicer) -> None:
            await self._handle(method, rpc)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _handle(self, method: Method, rpc: Servicer) -> None:
        facts = Facts(self._proxies.client(address_of(rpc.peer()), headers(rpc)), time.perf_counter())
        call = Call(self._context, rpc, facts, charged=method.charged)
        status, refusal = 200, None
        try:
            with self._place():
                await self._answer(method, call)
        except HeadraceError as error:
            refusal = error
        except asyncio.CancelledError:
            status = CLIENT_CLOSED
            raise
        except Exception:  # noqa: BLE001  it is logged
            refusal = self._context.journal.failure(facts)
        finally:
            route = f"/{self._service}/{method.name}"
            self._context.journal.write(
                facts, method="gRPC", route=route, status=status if refusal is None else refusal.status
            )
        if refusal is not None:
            told = status_of(refusal)
            await rpc.abort(told.code, told.details, (*await call.metadata(), *told.trailing_metadata))

    async def _answer(self, method: Method, call: Call) -> None:
        if self._context.open_answers.draining:
            raise shutdown_error()
        await authorize(self._context.authenticate, call.facts, call.given("authorization"), group=method.group)
        await method.answer(call)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self._most:
            raise Unavailable(f"{self._most} calls are open already", retry_after=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
