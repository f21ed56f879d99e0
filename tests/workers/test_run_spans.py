"""Spans of a worker's runs: takeovers, lost leases, cancellations and failures."""

from __future__ import annotations

import msgspec
import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.fakes import MODEL, answer, make_request, submit
from tests.support.trace_collector import Collector, traced
from tests.support.worker_harness import GatedEngine, Harness, wait_for_tokens, wait_until

NO_LIMIT = 10**9
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("traceparent", ["", f"00-{TRACE}-{CALLER}-01"])
async def test_a_takeover_is_a_span_that_links_to_the_first(
    settings: Settings, backend: Backend, collector: Collector, traceparent: str
) -> None:
    """Given a request with or without a trace, both runs are in one trace."""
    request = msgspec.structs.replace(make_request("canary", max_tokens=20), traceparent=traceparent)
    await submit(backend, request)
    hurried = settings.model_copy(update={"grace": 0.05})
    async with traced(settings, collector, "worker") as own:
        async with Harness(own, hurried).worker(GatedEngine(limit=3), "a"):
            await wait_for_tokens(backend, request, 3)
        async with Harness(own, settings).worker(name="b"):
            await answer(backend, request.id)
    first, second = collector.named(f"process {MODEL}")
    computed, resumed = collector.named(f"text_completion {MODEL}")
    assert second.links == [(first.trace_id, first.span_id)]
    assert (first.outcome, second.outcome) == ("handed_over", "completed")
    assert [span.attributes["headrace.worker.id"] for span in (first, second)] == ["a", "b"]
    assert {span.trace_id for span in collector.spans} == {TRACE if traceparent else first.trace_id}
    assert {first.parent_id, second.parent_id} == {CALLER if traceparent else ""}
    assert (computed.parent_id, resumed.parent_id) == (first.span_id, second.span_id)
    assert (computed.events, resumed.events) == (["first_token"], [])
    assert [span.attributes.get("gen_ai.usage.output_tokens") for span in (computed, resumed)] == [None, 20]
    assert not any(span.failed for span in collector.spans)
    assert b"canary" not in b"".join(collector.received)


async def test_the_ends_of_runs_are_told_apart(settings: Settings, backend: Backend, collector: Collector) -> None:
    lost, cancelled = (make_request(f"{each} [pace 50]", max_tokens=4000) for each in ("lost", "cancelled"))
    refused = make_request("x" * 9000, max_tokens=50)
    async with traced(settings, collector, "worker") as own:
        engine = GatedEngine(limit=NO_LIMIT)
        async with Harness(own, settings).worker(engine):
            for request in (lost, cancelled):
                await submit(backend, request)
            for request in (lost, cancelled):
                await wait_for_tokens(backend, request, 1)
            await backend.token_log.acquire([lost.id], "b")
            await backend.token_log.close(cancelled.id)
            await wait_until(lambda: len(engine.aborted) == 2)
            await submit(backend, refused)
            await answer(backend, refused.id)
    by_job = {span.attributes["messaging.message.id"]: span for span in collector.named(f"process {MODEL}")}
    found = {
        request.id: (by_job[request.id].outcome, by_job[request.id].attributes.get("error.type"))
        for request in (lost, cancelled, refused)
    }
    assert found == {
        lost.id: ("lease_lost", "lease_lost"),
        cancelled.id: ("cancelled", None),
        refused.id: ("failed", "context_length_exceeded"),
    }
    assert [by_job[request.id].failed for request in (lost, cancelled, refused)] == [True, False, True]
