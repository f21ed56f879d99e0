"""One call of a method: who makes it, what it sent, and what it is told.

It knows nothing of what a method does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from producer_api.auth.principal import Principal
from producer_api.http.ratelimit_headers import limit_headers
from producer_api.observability.request_log import Facts
from producer_api.rpc.requests import parse
from producer_api.services import Context
from shared.errors import InvalidRequest, MalformedBody

Proto = TypeVar("Proto", bound=Message)
Result = TypeVar("Result")
Servicer = grpc.aio.ServicerContext[Any, bytes]  # reads bytes, or the end
Metadata = tuple[tuple[str, str], ...]


class Call:
    """Made anew for each.

    Args:
        rpc: gRPC's side of it.
        charged: its answer tells where the caller's limits are.
    """

    def __init__(self, context: Context, rpc: Servicer, facts: Facts, *, charged: bool) -> None:
        self.facts = facts
        self._context = context
        self._rpc = rpc
        self._charged = charged
        self._more: dict[str, str] = {}
        self._begun = False
        self._size = 0  # of the message, in bytes

    @property
    def caller(self) -> Principal:
        return self.facts.caller

    def given(self, name: str) -> list[str]:
        """All that the metadata have by that name."""
        return [str(value) for key, value in self._rpc.invocation_metadata() or () if key == name]

    async def read(self, kind: type[Proto]) -> Proto:
        """The message that it sent. Raises MalformedBody, InvalidRequest."""
        limit = self._context.settings.body_timeout
        try:
            async with asyncio.timeout(limit):
                data = await self._rpc.read()
                if data is grpc.aio.EOF:
                    raise MalformedBody("a message is needed")
                if await self._rpc.read() is not grpc.aio.EOF:
                    raise InvalidRequest("only one message is taken")
        except TimeoutError:
            raise MalformedBody(f"the message did not arrive within {limit:.0f} s") from None
        self._size = len(data)
        return await self.off_loop(partial(parse, data, kind))

    async def off_loop(self, work: Callable[[], Result]) -> Result:
        """The result of `work` on the message that was read: of a thread, where that is large."""
        return await self._context.threads.run(self._size, work)

    def add(self, metadata: Mapping[str, str]) -> None:
        """To what goes with its answer."""
        self._more |= metadata

    async def write(self, message: Message) -> None:
        """At the client's pace."""
        if not self._begun:
            self._begun = True
            await self._rpc.send_initial_metadata(await self.metadata())
        await self._rpc.write(message.SerializeToString())

    async def metadata(self) -> Metadata:
        """What goes with its answer: the request's id, and where limits are."""
        meter = self._context.meter if self._charged else None
        limits = [] if meter is None else await limit_headers(meter, self.facts)
        told = ((name.decode(), value.decode()) for name, value in limits)
        return (("x-request-id", self.facts.client.http_request_id), *self._more.items(), *told)


def address_of(peer: str) -> str:
    """Of gRPC's name of a peer, ipv4:1.2.3.4:5 or ipv6:[::1]:5; empty for others."""
    kind, _, place = unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def headers(rpc: Servicer) -> dict[bytes, bytes]:
    """A call's metadata as HTTP has them."""
    found: Sequence[tuple[str, Any]] = tuple(rpc.invocation_metadata() or ())
    return {key.encode(): value.encode() for key, value in found if isinstance(value, str)}
