"""Records that are not valid requests, and results that their topics refuse: they stop no others."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, TopicAuthorizationFailedError

from shared.backend import Backend
from shared.kafka import topics
from shared.kafka.message import Outgoing
from shared.protocol import encode
from tests.support.fakes import answer as answer_events
from tests.support.fakes import end_of, make_request
from tests.support.kafka_bench import Bench, answer
from workers.kafka.transactional_writer import TransactionalWriter

TRACEPARENT = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"


@pytest.mark.slow
async def test_only_oversized_results_are_shortened(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given results in one transaction, one too long, and dead letters too long, the others are complete."""
    write = TransactionalWriter.write

    def narrow(self: TransactionalWriter, records: Sequence[Outgoing], *more: Any) -> None:
        """Refuse long records before the write, as brokers do; the mock would show aborted records."""
        if any(
            sum(map(len, (record.key or b"", record.value, *chain(*record.headers)))) > 3_000 for record in records
        ):
            raise MessageSizeTooLargeError
        write(self, records, *more)

    monkeypatch.setattr(TransactionalWriter, "write", narrow)
    monkeypatch.setattr("shared.kafka.message.MAX_KEPT_BYTES", 500)
    good = [bench.ask(f"p{i}", event_id=f"e{i}") for i in range(5)]
    keyed = replace(bench.ask("keyed", event_id="keyed"), key=b"k" * 4_000)
    keyed = replace(keyed, headers=(*keyed.headers, ("traceparent", TRACEPARENT), ("tracestate", b"t" * 4_000)))
    topic = topics.requests(bench.model)
    bad = [
        Outgoing(topic, b"k", b"x" * 5_000),
        Outgoing(topic, b"k" * 4_000, b"x", (("first", b"1"), ("second", b"x" * 4_000))),
    ]
    await bench.asend(*good[:2], bench.ask("long", event_id="long", max_tokens=800), keyed, *bad, *good[2:])
    async with bench.worker():
        results = await bench.results_by_event(7)
        await bench.shows("dead_letters_total", lambda counts: counts == [2])
    assert {subject: len(jobs) for subject, jobs in results.items()} == {
        "long": 1,
        "keyed": 1,
        **{f"e{i}": 1 for i in range(5)},
    }
    for i in range(5):
        assert results[f"e{i}"][0]["choices"][0]["text"] == answer(f"p{i}")
    [long] = results["long"]
    assert (long["state"], long["choices"], long["error"]["code"]) == ("completed", None, "payload_too_large")
    letters = await bench.letters(2)
    assert {(each.key, each.value, each.headers[0][0]) for each in letters} == {
        (b"k", b"", "headrace-error-code"),
        (None, b"", "first"),
    }


@pytest.mark.slow
async def test_a_result_that_its_topic_refuses_becomes_a_dead_letter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an unknown reply topic, and one that may not be written, the other requests have results."""
    find = KafkaProducer.partitions_for

    def partitions_for(self: KafkaProducer, topic: str) -> set[int]:
        if topic == "nowhere":
            find(self, f"other-{secrets.token_hex(4)}")  # the brokers answer
            raise KafkaTimeoutError
        if topic == "forbidden":
            raise TopicAuthorizationFailedError({topic})
        return find(self, topic)

    monkeypatch.setattr(KafkaProducer, "partitions_for", partitions_for)
    lost = [
        replace(bench.ask(name), headers=(("reply-topic", name.encode()),)) for name in ("nowhere", "forbidden")
    ]
    good = [bench.ask(f"p{i}", event_id=f"e{i}") for i in range(3)]
    await bench.asend(*(replace(record, key=b"one") for record in (*lost, *good)))
    async with bench.worker():
        results = await bench.results_by_event(3)
        letters = await bench.letters(2)
        await bench.shows("watermark", lambda marks: sum(marks) == 5)
    assert {name: len(jobs) for name, jobs in results.items()} == {f"e{i}": 1 for i in range(3)}
    assert sorted(letter.value for letter in letters) == sorted(record.value for record in lost)
    assert {letter.header("headrace-error-code") for letter in letters} == {"invalid_request"}


@pytest.mark.slow
async def test_a_request_of_the_api_that_cannot_be_read_ends(bench: Bench, backend: Backend) -> None:
    """Given one of another version, it ends with the error; one whose record is longer than a body may be runs."""
    bench.settings = bench.settings.model_copy(update={"max_body_bytes": 1_024})
    given = [make_request("strange"), make_request("x" * 1_024, max_tokens=1)]
    strange, long = (msgspec.structs.replace(request, model=bench.model) for request in given)
    topic = topics.api_requests(bench.model)
    values = [encode(strange).replace(b'"params":', b'"params":1,"x":'), encode(long), b"{", b'{"id": 5}']
    for request in (strange, long):
        await backend.token_log.create(request)
    await bench.asend(*(Outgoing(topic, b"one", value) for value in values))
    async with bench.worker():
        assert end_of(await answer_events(backend, strange.id)) == ("failed", "malformed_body")
        assert end_of(await answer_events(backend, long.id)) == ("completed", None)
        await bench.shows("dead_letters_total", lambda counts: sum(counts) == 3)


class NotText(str):
    """Name of a header that is not UTF-8 in its record."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


@pytest.mark.slow
async def test_invalid_records_do_not_block_their_partition(bench: Bench) -> None:
    """Given invalid records before a request of the same partition, it has a result, and they are dead letters."""
    topic = topics.requests(bench.model)
    values = [b"\xff\xfe", b"[" * 5_000, b"{" * 5_000, b"5", b"null", b"", b'{"model": "\xff"}', b'{"\\ud800": 1}']
    named = (("ce_id", b"\xff"), ("reply-topic", b"\xff"), (NotText("name"), b"1"))
    junk = [Outgoing(topic, b"one", value, named) for value in values]
    await bench.asend(*junk, replace(bench.ask("real", event_id="real"), key=b"one"))
    async with bench.worker():
        results = await bench.results_by_event(1)
        letters = await bench.letters(len(values))
    assert results["real"][0]["choices"][0]["text"] == answer("real")
    assert sorted(letter.value or b"" for letter in letters) == sorted(values)
    assert all(("\ufffd\ufffd", b"1") in letter.headers for letter in letters)
