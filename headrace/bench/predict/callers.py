"""Callers of a served model, with tritonclient: each sends its next request when it has the answer to the last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.http.aio as triton_http
from numpy.typing import NDArray

from headrace.bench.predict.direct import median_time

Arrays = Mapping[str, NDArray[Any]]
NAMES = {"int64": "INT64", "float32": "FP32"}


@dataclass(frozen=True)
class Served:
    """Rows per second of all callers, and how many batches of each size the server executed."""

    rows_per_second: float
    batches: dict[int, int]


async def measure_rate(url: str, model: str, rows: Arrays, callers: int, seconds: float) -> Served:
    """Measure callers that send one row each. Raises InferenceServerException if a request fails."""
    async with triton_http.InferenceServerClient(url.removeprefix("http://"), conn_limit=callers) as client:
        inputs = [_inputs(triton_http.InferInput, rows, number) for number in range(callers)]
        outputs = [triton_http.InferRequestedOutput((await _outputs(client, model))[0], binary_data=True)]

        async def infer(number: int) -> None:
            await client.infer(model, inputs[number], outputs=outputs)

        await _repeat(infer, callers, 1.0)
        before = await _batches(client, model)
        begin = time.perf_counter()
        done = await _repeat(infer, callers, seconds)
        elapsed = time.perf_counter() - begin
        executed = {size: count - before.get(size, 0) for size, count in (await _batches(client, model)).items()}
    return Served(done / elapsed, {size: count for size, count in executed.items() if count})


def median_latency(address: str, model: str, rows: Arrays, requests: int) -> float:
    """Return the median seconds of requests over gRPC, one after the other."""
    with triton_grpc.InferenceServerClient(address) as client:
        inputs = _inputs(triton_grpc.InferInput, rows, 0)
        return median_time(lambda: client.infer(model, inputs), requests)


async def _repeat(call: Callable[[int], Awaitable[None]], callers: int, seconds: float) -> int:
    """Have each caller repeat its call until the time is over. Return the number of calls."""
    deadline = time.perf_counter() + seconds

    async def calls(number: int) -> int:
        done = 0
        while time.perf_counter() < deadline:
            await call(number)
            done += 1
        return done

    return sum(await asyncio.gather(*map(calls, range(callers))))


def _inputs(make: Any, rows: Arrays, number: int) -> list[Any]:
    """Return the inputs of one row."""
    made = []
    for name, array in rows.items():
        one = make(name, [1, *array.shape[1:]], NAMES[array.dtype.name])
        one.set_data_from_numpy(array[number : number + 1])
        made.append(one)
    return made


async def _outputs(client: Any, model: str) -> list[str]:
    return [each["name"] for each in (await client.get_model_metadata(model))["outputs"]]


async def _batches(client: Any, model: str) -> dict[int, int]:
    """Return how many batches of each size were executed since the model was loaded."""
    [found] = (await client.get_inference_statistics(model))["model_stats"]
    return {int(each["batch_size"]): int(each["compute_infer"]["count"]) for each in found["batch_stats"]}
