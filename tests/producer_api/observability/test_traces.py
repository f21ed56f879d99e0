"""Traces from HTTP and gRPC through the queue and a worker to the last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import pytest

from producer_api.app import create_app
from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import ErrorInfo, RequestState
from shared.settings import Settings
from tests.support import grpc_client
from tests.support.api_server import calling, chat, frames, serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.trace_collector import Collector, traced
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import GatedEngine, Harness

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "mine", "authorization": "Bearer canary-key"}
CHAT = "POST /v1/chat/completions"
LATENCIES = ("time_in_queue", "time_to_first_token", "e2e")


@pytest.fixture
async def tracing(settings: Settings, backend: Backend, collector: Collector) -> AsyncIterator[Backend]:
    """Backend of an API whose spans are exported when it is closed; a worker is announced."""
    await ScriptedWorker(backend).announce()
    async with traced(settings, collector, "api") as opened:
        yield opened


def expected_attributes(job: str) -> Iterator[dict[str, object]]:
    """Yield those of the HTTP request, of the message sent, of its processing and of the inference."""
    yield {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "headrace.job.id": job,
        "headrace.http_request.id": "mine",
        "headrace.tenant": "default",
    }
    message = {"messaging.system": "redis", "messaging.destination.name": MODEL, "headrace.job.id": job}
    yield message | {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    message |= {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    yield message | {"headrace.run.id": f"{job}/1", "headrace.outcome": "completed"}
    yield {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "headrace",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": job,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": len("user:canary-prompt\n"),
        "gen_ai.usage.output_tokens": 4,
    }


async def test_a_stream_is_one_trace_to_the_last_token(
    settings: Settings, tracing: Backend, collector: Collector
) -> None:
    """The spans are nested, have the attributes of the conventions, and none of the texts."""
    body = chat(stream=True, max_tokens=4, temperature=0.5, stop=["canary-stop"], user="canary-user")
    body["messages"] = [{"role": "user", "content": "canary-prompt"}]
    engine = GatedEngine(limit=1)
    async with traced(settings, collector, "worker") as of_worker:
        async with (
            Harness(of_worker, settings).worker(engine),
            serving(settings, tracing) as url,
            httpx.AsyncClient(base_url=url, timeout=LIMIT_S, headers=HEADERS) as http,
        ):
            assert (await http.get("/canary-path?q=canary-query")).status_code == 404
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                events = frames(response)
                text = (await anext(events))["data"]
                going_on = time.time_ns()
                engine.limit = 1000
                text += "".join([event["data"] async for event in events])
        assert '"finish_reason":"length"' in text
    await tracing.close()

    server, send, process, inference = (
        collector.one(name) for name in (CHAT, f"send {MODEL}", f"process {MODEL}", f"chat {MODEL}")
    )
    spans = [server, send, process, inference]
    assert {span.trace_id for span in spans} == {TRACE}
    assert [span.parent_id for span in spans] == [CALLER, server.span_id, send.span_id, process.span_id]
    assert [span.kind for span in spans] == ["server", "producer", "consumer", "internal"]
    assert [span.service for span in spans] == [*["headrace-api"] * 2, *["headrace-worker"] * 2]
    assert not any(span.failed or "error.type" in span.attributes for span in spans)
    assert server.ended > going_on > inference.started
    job = str(process.attributes["messaging.message.id"])
    for span, attributes in zip(spans, expected_attributes(job), strict=True):
        assert span.attributes.items() >= attributes.items()
    assert inference.events == ["first_token"]
    times = [inference.attributes[f"gen_ai.latency.{name}"] for name in LATENCIES]
    assert times == sorted(times)
    unknown = collector.one("GET")
    assert (unknown.attributes["error.type"], unknown.failed) == ("not_found", False)
    assert b"canary" not in b"".join(collector.received)


async def test_refusals_and_failed_answers_are_recorded(
    settings: Settings, backend: Backend, tracing: Backend, collector: Collector
) -> None:
    """A client's error leaves the span's status unset, a stream that fails does not. Probes have no span."""
    worker = ScriptedWorker(backend)
    async with calling(create_app(settings, tracing)) as http:
        await http.get("/health")
        refused = await http.post("/v1/chat/completions", json=chat(model="canary"))
        assert refused.status_code == 404
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat(stream=True)))
        job = await worker.take()
        await job.say("canary")
        await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("canary")))
        assert (await asked).status_code == 200
    await tracing.close()
    first, second = collector.named(CHAT)
    assert (first.attributes["error.type"], first.failed) == ("model_not_found", False)
    assert (second.attributes["error.type"], second.failed) == ("engine_failed", True)
    assert [span.name for span in collector.spans] == [CHAT, CHAT, f"send {MODEL}"]
    assert b"canary" not in b"".join(collector.received)


async def test_the_trace_of_a_caller_that_samples_it_not_is_carried(
    settings: Settings, backend: Backend, tracing: Backend, collector: Collector
) -> None:
    worker = ScriptedWorker(backend)
    async with calling(create_app(settings, tracing)) as http:
        unsampled = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat(), headers=unsampled))
        request = await worker.answer("hello")
        assert (await asked).status_code == 200
    await tracing.close()
    assert request.traceparent[:35] == f"00-{TRACE}"
    assert request.traceparent[-2:] == "00"
    assert collector.spans == []


async def test_a_call_of_grpc_has_a_span(
    settings: Settings, backend: Backend, tracing: Backend, collector: Collector
) -> None:
    worker = ScriptedWorker(backend)
    async with grpc_client.serving(settings, tracing) as (_, client):
        prompt = pb.JobRequest(model=MODEL, prompt="canary")
        events = client.Generate(pb.GenerateRequest(job=prompt), ("traceparent", HEADERS["traceparent"]))
        await worker.answer("a", "b")
        await grpc_client.read_rest(events)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.GetJob(pb.GetJobRequest(id="req_no"))
    await tracing.close()
    generate, send = collector.one("headrace.v1.Inference/Generate"), collector.one(f"send {MODEL}")
    assert (generate.trace_id, generate.parent_id, send.parent_id) == (TRACE, CALLER, generate.span_id)
    assert generate.attributes.items() >= {"rpc.system.name": "grpc", "rpc.response.status_code": "OK"}.items()
    refused = collector.one("headrace.v1.Inference/GetJob")
    assert refused.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert b"canary" not in b"".join(collector.received)


async def test_requests_are_served_while_the_collector_is_away(
    settings: Settings, backend: Backend, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    worker = ScriptedWorker(backend)
    await worker.announce()
    collector.answering.clear()
    async with (
        traced(settings, collector, "api") as api,
        calling(create_app(settings, api)) as http,
    ):
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat()))
        await worker.answer("hello")
        assert (await asked).json()["choices"][0]["message"]["content"] == "hello"
