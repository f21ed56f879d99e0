"""Streams of KServe's protocol over gRPC, with tritonclient in the same process."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
from structlog.testing import capture_logs
from tritonclient.grpc.aio import InferenceServerClient

from producer_api.rpc.kserve.inference import MAX_IN_FLIGHT
from tests.support.tensor_api import TensorApi
from tests.support.tensor_inputs import add_sub, given, ints
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextmanager
def streaming(host: str) -> Iterator[tuple[triton_grpc.InferenceServerClient, Callable[[], Any]]]:
    """Yield a blocking client with a stream, and a function that returns its next result or error."""
    found: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(host) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        yield client, lambda: found.get(timeout=LIMIT_S)
        client.stop_stream()


async def test_a_decoupled_model_streams_its_responses(tensors: TensorApi) -> None:
    def stream() -> tuple[list[list[int]], list[bool], list[str]]:
        with streaming(tensors.host) as (client, result):
            client.async_stream_infer("repeat", [given("IN", ints(3, 4))], request_id="a")
            plain = [result() for _ in range(2)]
            client.async_stream_infer(
                "repeat", [given("IN", ints())], request_id="b", enable_empty_final_response=True
            )
            found = [*plain, result()]
            values = [[] if each.as_numpy("OUT") is None else each.as_numpy("OUT").tolist() for each in found]
            responses = [each.get_response() for each in found]
            finals = [each.parameters["triton_final_response"].bool_param for each in responses]
            return values, finals, [each.id for each in responses]

    assert await asyncio.to_thread(stream) == ([[3], [4], []], [False, False, True], ["a", "a", "b"])


async def test_a_stream_keeps_the_order_of_sequences_and_goes_on_after_errors(tensors: TensorApi) -> None:
    def stream() -> list[object]:
        with streaming(tensors.host) as (client, result):
            for i in range(3):
                client.async_stream_infer(
                    "sums", [given("IN", ints(i + 1))], sequence_id=5, sequence_start=i == 0, sequence_end=i == 2
                )
            client.async_stream_infer("nothing", add_sub(), request_id="lost")
            client.async_stream_infer("failing", [given("IN", ints(1))])
            client.async_stream_infer("add_sub", add_sub())
            found = [result() for _ in range(6)]
        sums = [int(each.as_numpy("OUT")[0]) for each in found[:3]]
        return [*sums, *map(str, found[3:5]), found[5].as_numpy("OUTPUT0").tolist()]

    with capture_logs() as logs:
        *sums, lost, failed, last = await asyncio.to_thread(stream)
    assert (sums, last) == ([1, 3, 6], [11, 22])
    assert "the model 'nothing' does not exist" in str(lost)
    assert "the model ran out of numbers" in str(failed)
    requests = [each for each in logs if each["event"] == "request" and each["route"].endswith("StreamInfer")]
    assert sorted(each["status"] for each in requests) == [200, 200, 200, 200, 200, 404, 500]


async def test_a_stream_takes_more_requests_than_are_in_flight(triton: InferenceServerClient) -> None:
    count = 2 * MAX_IN_FLIGHT

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for i in range(count):
            inputs = [given("INPUT0", ints(i)), given("INPUT1", ints(1))]
            yield {"model_name": "add_sub", "inputs": inputs, "request_id": str(i)}

    found = []
    async with asyncio.timeout(LIMIT_S):
        async for result, error in triton.stream_infer(requests()):
            assert error is None
            found.append((result.get_response().id, int(result.as_numpy("OUTPUT0")[0])))
    assert found == [(str(i), i + 1) for i in range(count)]


async def test_responses_wait_for_those_of_earlier_requests(
    tensors: TensorApi, triton: InferenceServerClient
) -> None:
    models = tensors.worker.models
    before, gate = len(models["add_sub"].requests), models["gated"].gate
    assert gate is not None

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "gated", "inputs": [given("IN", ints(1))], "request_id": "first"}
        yield {"model_name": "add_sub", "inputs": add_sub(), "request_id": "second"}
        while len(models["add_sub"].requests) == before:
            await asyncio.sleep(0.01)
        await triton.infer("add_sub", add_sub())  # the one before has its response by then
        gate.set()

    async with asyncio.timeout(LIMIT_S):
        found = [result.get_response().id async for result, _ in triton.stream_infer(requests())]
    assert found == ["first", "second"]


async def test_an_abandoned_stream_cancels_its_requests(tensors: TensorApi) -> None:
    """The request waits for a worker that does not come."""
    async with InferenceServerClient(tensors.host) as client:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "waiting", "inputs": [given("IN", ints(1))]}
            await asyncio.Event().wait()

        reading = asyncio.create_task(anext(aiter(client.stream_infer(requests()))))
        async with asyncio.timeout(LIMIT_S):
            while not (await tensors.backend.transport.depth("waiting")).waiting:
                await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    async with asyncio.timeout(LIMIT_S):
        while (await tensors.backend.transport.depth("waiting")).waiting:
            await asyncio.sleep(0.01)
