"""Traces through Kafka: of requests of the API that are queued there, and of records from a topic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from producer_api.admission.kafka_queue import with_kafka_queue
from producer_api.app import create_app
from shared.backend import Backend
from shared.kafka import topics
from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings
from tests.support.api_server import calling
from tests.support.kafka_bench import Bench
from tests.support.trace_collector import Collector, traced

API, RECORD, CALLER = "a" * 32, "b" * 32, "c" * 16


def trace(trace_id: str) -> str:
    return f"00-{trace_id}-{CALLER}-01"


@pytest.mark.slow
async def test_a_trace_passes_through_kafka(
    bench: Bench, settings: Settings, backend: Backend, collector: Collector
) -> None:
    """Given a request over HTTP with the queue in Kafka, and a record of a topic, each is one trace to its end.

    The result continues the record's trace, and keeps its `tracestate`; an invalid trace context is left out.
    """
    model, queued = bench.model, settings.model_copy(update={"queue": "kafka"})
    info = WorkerInfo(id="a", pid=1, model=model, state="ready", max_model_len=8192)
    await backend.registry.beat(info)
    for event_id, context in (("good", trace(RECORD).encode()), ("bad", b"\xff")):
        record = bench.ask("canary", event_id=event_id)
        headers = (("traceparent", context), ("tracestate", b"vendor=1"))
        await bench.asend(replace(record, headers=record.headers + headers))
    async with traced(settings, collector, "worker") as own, traced(queued, collector, "api") as api:
        bench.backend = own
        async with bench.worker(), with_kafka_queue(api, queued) as through:
            async with calling(create_app(queued, through)) as http:
                body = {"model": model, "prompt": "canary", "max_tokens": 3}
                headers_of_api = {"traceparent": trace(API)}
                answered = await http.post("/v1/completions", json=body, headers=headers_of_api)
                assert answered.status_code == 200, answered.text
            results = {record.header("ce_subject"): record for record in await bench.read(bench.results, 2)}
    server, send = collector.one("POST /v1/completions"), collector.one(f"send {model}")
    for topic, trace_id, above in (
        (topics.api_requests(model), API, send),
        (topics.requests(model), RECORD, None),
    ):
        [taken] = [span for span in collector.named(f"process {topic}") if span.trace_id == trace_id]
        [process] = [span for span in collector.named(f"process {model}") if span.trace_id == trace_id]
        [computed] = [span for span in collector.named(f"text_completion {model}") if span.trace_id == trace_id]
        assert taken.parent_id == (CALLER if above is None else above.span_id)
        assert (process.parent_id, computed.parent_id) == (taken.span_id, process.span_id)
        assert taken.attributes["messaging.system"] == "kafka"
        if above is None:
            assert results["good"].header("traceparent") == f"00-{RECORD}-{taken.span_id}-01"
    assert (server.parent_id, send.parent_id) == (CALLER, server.span_id)
    assert send.attributes["messaging.system"] == "kafka"
    assert results["good"].header("tracestate") == "vendor=1"
    assert results["bad"].header("traceparent")[3:35] not in (API, RECORD)
    assert results["bad"].header("tracestate") is None
    assert b"canary" not in b"".join(collector.received)
