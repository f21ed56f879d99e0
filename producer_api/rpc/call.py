"""One gRPC call: its caller, its message, its metadata and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from producer_api.auth.principal import Principal
from producer_api.http.ratelimit_headers import limit_headers
from producer_api.observability.request_log import RequestFacts
from producer_api.rpc.requests import parse, unknown_fields
from producer_api.services import Context
from shared.errors import InvalidRequest, MalformedBody
from shared.schemas.field_paths import field_path
from shared.schemas.unknown_fields import report

Proto = TypeVar("Proto", bound=Message)
Result = TypeVar("Result")
RpcContext = grpc.aio.ServicerContext[Any, bytes]  # reads bytes, or EOF
Metadata = tuple[tuple[str, str], ...]


class Call:
    """One call of a method.

    Args:
        rpc: gRPC's context of the call.
        charged: the answer's metadata report the caller's limits.
    """

    def __init__(self, context: Context, rpc: RpcContext, facts: RequestFacts, *, charged: bool) -> None:
        self.facts = facts
        self._context = context
        self._rpc = rpc
        self._charged = charged
        self._metadata_sent = False
        self._size = 0  # of the message, in bytes

    @property
    def caller(self) -> Principal:
        return self.facts.caller

    def metadata_values(self, name: str) -> list[str]:
        """Return all values that the client sent under a name."""
        return [str(value) for key, value in self._rpc.invocation_metadata() or () if key == name]

    async def read(self, kind: type[Proto]) -> Proto:
        """Read the message of the call; its unknown fields are reported in the answer's metadata.

        Raises MalformedBody, InvalidRequest.
        """
        settings = self._context.settings
        limit = settings.body_timeout
        try:
            async with asyncio.timeout(limit):
                data = await self._rpc.read()
                if data is grpc.aio.EOF:
                    raise MalformedBody("the call must have a message")
                if await self._rpc.read() is not grpc.aio.EOF:
                    raise InvalidRequest("the call must have only one message")
        except TimeoutError:
            raise MalformedBody(f"the message did not arrive within {limit:.0f} s") from None
        self._size = len(data)

        def read() -> tuple[Proto, str]:
            message = parse(data, kind, strict_fields=settings.strict_fields)
            return message, report(map(field_path, unknown_fields(message)))

        message, ignored = await self.off_loop(read)
        self.facts.report_ignored(ignored)
        return message

    async def messages(self, kind: type[Proto]) -> AsyncIterator[Proto]:
        """Yield the messages of a call that has a stream of them. Raises MalformedBody, InvalidRequest."""
        strict = self._context.settings.strict_fields
        while (data := await self._rpc.read()) is not grpc.aio.EOF:
            yield await self._context.threads.run(len(data), partial(parse, data, kind, strict_fields=strict))

    async def off_loop(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work` on the message, computed in a thread if the message is large."""
        return await self._context.threads.run(self._size, work)

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Add to the metadata of the answer."""
        self.facts.headers |= metadata

    async def write(self, message: Message) -> None:
        """Write a message; returns when the client's flow control has taken it."""
        if not self._metadata_sent:
            self._metadata_sent = True
            await self._rpc.send_initial_metadata(await self.metadata())
        await self._rpc.write(message.SerializeToString())

    async def metadata(self) -> Metadata:
        """Return the metadata of the answer: the request's id and the state of the caller's limits."""
        limiter = self._context.rate_limiter if self._charged else None
        headers = [] if limiter is None else await limit_headers(limiter, self.facts)
        limits = ((name.decode(), value.decode()) for name, value in headers)
        return (("x-request-id", self.facts.client.http_request_id), *self.facts.headers.items(), *limits)


def address_of(peer: str) -> str:
    """Return the address in gRPC's name of a peer, ipv4:1.2.3.4:5 or ipv6:[::1]:5; empty for others."""
    kind, _, place = unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def metadata_headers(rpc: RpcContext) -> list[tuple[bytes, bytes]]:
    """Return the metadata of a call as HTTP headers."""
    found: Sequence[tuple[str, Any]] = tuple(rpc.invocation_metadata() or ())
    return [(key.encode(), value.encode()) for key, value in found if isinstance(value, str)]
