"""gRPC server of the API on a free port, and a client made from the service's definition."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from producer_api.app import create_app
from producer_api.rpc import external_scaler_pb2, prediction_pb2
from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.server import serving as serving_rpc
from producer_api.services import Context
from shared.backend import Backend
from shared.settings import Settings
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S

[SERVICE] = pb.DESCRIPTOR.services_by_name.values()
SERVICES = tuple(
    service
    for module in (pb, prediction_pb2, external_scaler_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


class Client:
    """Client with the services' methods as attributes, as in generated stubs."""

    def __init__(self, channel: grpc.aio.Channel, port: int, key: str | None = None) -> None:
        self.channel = channel
        self.port = port
        self._metadata = () if key is None else (("authorization", f"Bearer {key}"),)

    def __getattr__(self, name: str) -> Any:
        method = next(each for service in SERVICES for each in service.methods if each.name == name)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = make(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )

        def begin(message: Any, *more: tuple[str, str], **options: Any) -> Any:
            return call(message, metadata=(*self._metadata, *more), timeout=LIMIT_S, **options)

        return begin

    def having(self, key: str) -> Client:
        return Client(self.channel, self.port, key)


@asynccontextmanager
async def serving(settings: Settings, backend: Backend, port: int = 0) -> AsyncIterator[tuple[Context, Client]]:
    """Run the gRPC server until the body ends, and yield the API's context and a client."""
    context: Context = create_app(settings.model_copy(update={"grpc_port": port}), backend).state.context
    try:
        async with (
            serving_rpc(context, farewell=0.1) as bound,
            grpc.aio.insecure_channel(f"{settings.host}:{bound}") as channel,
        ):
            yield context, Client(channel, bound)
    finally:
        await context.close()


def chat(**fields: Any) -> pb.JobRequest:
    """Return a small job."""
    return pb.JobRequest(model=MODEL, messages=[pb.Message(role="user", content="hi")], **fields)


async def read_rest(events: Any) -> tuple[list[str], list[pb.Event]]:
    """Read the rest of a stream, and return the texts of its tokens and its events."""
    seen = []
    while (event := await events.read()) is not grpc.aio.EOF:
        seen.append(event)
    assert await events.code() is grpc.StatusCode.OK
    return [token.text for event in seen for token in event.tokens.tokens], seen


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """Return the error with which a call ends, streamed or not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            while await call.read() is not grpc.aio.EOF:
                pass
    return caught.value


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Return the details of an error by their type."""
    found = {}
    status = rpc_status.from_call(error)  # also checks that code and message match
    for packed in status.details if status is not None else ():
        kind = packed.TypeName().rpartition(".")[2]
        found[kind] = getattr(error_details_pb2, kind)()
        assert packed.Unpack(found[kind])
    return found
