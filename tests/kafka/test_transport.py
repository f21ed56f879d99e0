"""API requests queued in Kafka: reserved, counted, cancelled and run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from producer_api.admission.gateway import WEBHOOK_CHANNEL
from producer_api.admission.kafka_queue import KafkaQueue, with_kafka_queue
from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.errors import PayloadTooLarge, QueueFull, Unavailable
from shared.protocol import Ticket
from shared.queue.interface import Room
from shared.queue.redis_streams import RedisStreams
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.fakes import MODEL, answer, make_request
from tests.support.kafka_bench import Bench
from tests.support.waiting import LIMIT_S
from tests.support.webhook_receiver import SECRET
from tests.support.worker_harness import answer_tokens, expected_tokens


@pytest.fixture
async def api(backend: Backend, settings: Settings) -> AsyncIterator[Backend]:
    settings = settings.model_copy(update={"queue_depth": 3})
    async with with_kafka_queue(backend, settings) as through:
        yield through


@pytest.fixture
def lanes(backend: Backend) -> RedisStreams:
    assert isinstance(backend.transport, RedisStreams)
    return backend.transport


async def test_requests_in_the_topic_count_and_can_be_cancelled(api: Backend, lanes: RedisStreams) -> None:
    first, second, third = (make_request(deadline=1.0) for _ in range(3))
    tickets = [await api.transport.publish(request) for request in (first, second, third)]
    with pytest.raises(QueueFull):
        await api.transport.publish(make_request())
    assert [(await api.transport.outlook(ticket)).position for ticket in tickets] == [1, 2, 3]
    assert await api.transport.missing(MODEL, [first.id]) == []
    assert (await api.transport.pull(MODEL, "w", Room.all(9))).found == []
    assert (await api.transport.depth(MODEL)).waiting == 3
    assert len(await api.transport.overdue(MODEL, 9)) == 3

    for _ in range(2):
        await api.transport.discard(tickets[0])
    await api.transport.publish(make_request())
    await lanes.publish(second)  # as a worker does: its place is reserved, though the queue is full
    [delivery] = (await api.transport.pull(MODEL, "w", Room.all(9))).found
    assert delivery.claim.job_id == second.id
    assert await api.transport.outlook(tickets[0]) is None
    assert (await api.transport.depth(MODEL)).waiting == 2


async def test_a_failed_write_releases_its_reservation(
    api: Backend, lanes: RedisStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given failing brokers, the answer is 503 and the failure is counted; of two writers of one id, one counts."""

    def failing(self: KafkaQueue, request: object) -> None:
        raise KafkaTimeoutError

    registry = CollectorRegistry()
    for collector in api.collectors():
        registry.register(collector)

    def failed_calls() -> float | None:
        return registry.get_sample_value("headrace_kafka_errors_total")

    request = make_request(deadline=1.0)
    assert failed_calls() == 0
    with monkeypatch.context() as broken:
        broken.setattr(KafkaQueue, "_write", failing)
        with pytest.raises(Unavailable) as refused:
            await api.transport.publish(request)
        assert refused.value.retry_after
        assert (await api.transport.depth(MODEL)).waiting == 0
        assert await api.transport.overdue(MODEL, 9) == []
        assert failed_calls() == 1
    await api.transport.publish(request)
    with monkeypatch.context() as broken:
        broken.setattr(KafkaQueue, "_write", failing)
        with pytest.raises(Unavailable):
            await api.transport.publish(request)
    assert await api.transport.missing(MODEL, [request.id]) == []


class Refused:
    """Delivery of a record that its broker refuses."""

    def get(self, timeout: float) -> None:
        raise MessageSizeTooLargeError


async def test_a_request_too_large_for_its_topic_is_refused_alone(
    api: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given one that the producer refuses, and one that the broker does, another request is queued."""
    send = KafkaProducer.send

    def narrow(self: KafkaProducer, **record: Any) -> Any:
        if b"larger" in record["value"]:
            raise MessageSizeTooLargeError
        return Refused() if b"large" in record["value"] else send(self, **record)

    monkeypatch.setattr(KafkaProducer, "send", narrow)
    places = await api.transport.publish_many([make_request(each) for each in ("large", "small", "larger")])
    assert [type(place) for place in places] == [PayloadTooLarge, Ticket, PayloadTooLarge]
    assert (await api.transport.depth(MODEL)).waiting == 1


async def test_the_sweeper_releases_stale_reservations(
    api: Backend, lanes: RedisStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.redis_streams.CONFIRM_WITHIN_S", -1.0)
    died, wanted, gone = (make_request() for _ in range(3))
    await lanes.reserve([died])  # by a process that died before it wrote to the brokers
    for request in (wanted, gone):
        await api.token_log.create(request)
        await api.transport.publish(request)
    await api.token_log.close(gone.id)

    async def models() -> list[str]:
        return [MODEL]

    await Sweeper(api, models).sweep(tidy=True)
    assert await api.transport.missing(MODEL, [died.id, wanted.id, gone.id]) == [died.id, gone.id]
    assert (await api.transport.depth(MODEL)).waiting == 1


@pytest.mark.slow
async def test_jobs_run_through_kafka_unless_cancelled(settings: Settings, backend: Backend) -> None:
    """Given a worker that reads from Kafka, a job has its answer and its webhook, and no result record."""
    bench = Bench(settings, backend)
    settings = settings.model_copy(update={"webhook_secrets": SecretStr(SECRET), "webhook_allow_http": True})
    async with (
        backend.live.subscribe(WEBHOOK_CHANNEL) as heard,
        with_kafka_queue(backend, settings) as through,
        serving(settings, through) as url,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
    ):
        body = {"model": bench.model, "prompt": "hi", "max_tokens": 3, "priority": "interactive"}
        cancelled = (await http.post("/v1/jobs", json=body)).json()["id"]
        assert (await http.delete(f"/v1/jobs/{cancelled}")).json()["state"] == "cancelled"
        hook = {"webhook": {"url": "http://example.com"}}
        job = (await http.post("/v1/jobs", json={**body, **hook})).json()["id"]
        request = make_request("hi", max_tokens=3)
        async with bench.worker():
            assert answer_tokens(await answer(backend, job)) == expected_tokens(request)
            assert await heard.get(LIMIT_S) == job.encode()
        assert (await backend.transport.depth(bench.model)).waiting == 0
        record = await backend.token_log.record(job)
        assert record is not None
        assert record.source.startswith(f"headrace.api.{bench.model}/")
