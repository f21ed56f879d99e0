"""Requests in records: ids that follow from the record, and refusals with their types."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapters.adapter import Adapter
from shared.errors import HeadraceError, InvalidRequest
from shared.kafka import topics
from shared.kafka.message import (
    IGNORED,
    KafkaRequest,
    Order,
    Outgoing,
    Record,
    api_record,
    dead_letter,
    read_request,
    read_result,
    request_record,
    result_record,
)
from shared.kafka.offsets import MAX_METADATA_BYTES, Offsets
from shared.models.worker_registry import ModelInfo
from shared.protocol import PriorityClass, RequestState
from shared.schemas.native.jobs import Job
from shared.token_log.answer import Answer
from shared.token_log.interface import RequestRecord
from shared.validation.request_limits import Limits
from shared.validation.schema_check import NOT_HELD
from tests.support.fakes import MODEL, make_request

INFO = ModelInfo(name=MODEL, max_model_len=100, created=0)
TOPIC = topics.requests(MODEL)
ARGUMENTS = "messages[0].tool_calls[0].function.arguments"
TRACE = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def came(out: Outgoing, offset: int = 0, partition: int = 0) -> Record:
    return Record(out.topic, partition, offset, out.key, out.value, out.headers)


def read(record: Record, now: float = 100.0) -> Order:
    return read_request(record, INFO, Limits(), 10_000, now)


def plain(**fields: object) -> Record:
    body = {"model": MODEL, "prompt": "hi", **fields}
    return Record(TOPIC, 0, 0, None, json.dumps(body).encode())


def ended(order: Order) -> Job:
    record = RequestRecord(order.request.id, MODEL, "t", PriorityClass.BATCH, RequestState.COMPLETED, 1.0)
    return Job.ended(record, Answer(), "fp")


def test_a_record_may_name_any_model_if_a_setting_allows_it() -> None:
    for fields in ({"model": "dummy"}, {"model": None}):
        with pytest.raises(HeadraceError) as refused:
            read(plain(**fields))
        assert refused.value.param == "model"
        assert read_request(plain(**fields), INFO, Limits(), 10_000, 100.0, any_name=True).request.model == MODEL


def test_a_record_may_name_an_adapter_of_its_model() -> None:
    adapter = Adapter(name="sql", base=MODEL, path="p", digest="d", rank=1, created=1)
    foreign = Adapter(name="other", base="m", path="p", digest="d", rank=1, created=1)
    known = {each.name: each for each in (adapter, foreign)}
    request = read_request(plain(model="sql"), INFO, Limits(), 10_000, 100.0, adapters=known).request
    assert (request.model, request.adapter) == (MODEL, adapter.ref)
    with pytest.raises(HeadraceError):
        read_request(plain(model="other"), INFO, Limits(), 10_000, 100.0, adapters=known)


def called(arguments: str) -> list[dict[str, object]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def test_a_request_round_trips_and_its_id_follows_from_the_event() -> None:
    body = KafkaRequest(model=MODEL, prompt="hi", tenant="t", priority="standard", timeout=5.0)
    out = request_record(TOPIC, body, event_id="e1", source="/me", reply_topic="mine", extra=(TRACE,))
    first, again = read(came(out, 3)), read(came(out, 9, 1), 200.0)
    assert out.key == b"t"
    assert (first.request.tenant, first.request.priority, first.reply) == ("t", PriorityClass.STANDARD, "mine")
    assert (first.request.created_at, first.request.deadline) == (100.0, 105.0)
    assert (again.request.id, again.request.params.seed) == (first.request.id, first.request.params.seed)
    others = [
        request_record(TOPIC, body.model_copy(update={"tenant": "u"}), event_id="e1", source="/me"),
        request_record(TOPIC, body, event_id="e2", source="/me"),
    ]
    assert len({first.request.id, *(read(came(other)).request.id for other in others)}) == 3


def test_max_tokens_beyond_the_context_is_lowered() -> None:
    assert read(plain(max_tokens=101)).request.params.max_tokens == 100


def test_an_integer_priority_stands_for_a_class() -> None:
    read_classes = [read(plain(priority=number)).request.priority for number in (-7, 0, 7)]
    assert read_classes == [PriorityClass.INTERACTIVE, PriorityClass.BATCH, PriorityClass.BATCH]


def test_plain_json_is_a_batch_request_of_its_place() -> None:
    order = read(plain())
    assert (order.request.priority, order.request.tenant) == (PriorityClass.BATCH, "default")
    assert order.reply == topics.RESULTS
    moved = Record(TOPIC, 0, 1, None, order.record.value)
    assert read(moved).request.id != order.request.id == read(plain()).request.id


@pytest.mark.parametrize(
    ("record", "code", "param"),
    [
        (plain(model="other"), "model_not_found", "model"),
        (plain(model=5), "invalid_request", "model"),
        (plain(tenant="a b"), "invalid_request", "tenant"),
        (plain(temperature=-1), "invalid_request", "temperature"),
        (plain(deadline=99.0), "deadline_exceeded", None),
        (plain(timeout=1e9), "invalid_request", "timeout"),
        (plain(prompt=None), "invalid_request", "messages"),
        (plain(prompt=None, messages=called("[" * 1200)), "invalid_request", ARGUMENTS),
        (plain(prompt=None, messages=called('{"a":"\\ud800"}')), "invalid_request", ARGUMENTS),
        (Record(TOPIC, 0, 0, None, b""), "malformed_body", None),
        (Record(TOPIC, 0, 0, None, b"\xff"), "malformed_body", None),
        (Record(TOPIC, 0, 0, None, b" " * 10_001), "payload_too_large", None),
        (Record(topics.api_requests(MODEL), 0, 0, None, b"{}"), "malformed_body", None),
        (Record(topics.api_requests(MODEL), 0, 0, None, b'{"x":' + b"[" * 9000), "malformed_body", None),
        (Record(topics.api_requests(MODEL), 0, 0, None, b'{"id":"\xff"}'), "malformed_body", None),
    ],
)
def test_what_is_no_request_is_refused_by_its_type(record: Record, code: str, param: str | None) -> None:
    with pytest.raises(HeadraceError) as refused:
        read(record)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("content-type", b"application/cloudevents+json", "unsupported_media_type"),
        ("ce_specversion", b"0.3", "invalid_request"),
        ("ce_type", b"other", "invalid_request"),
        ("ce_id", b"", "invalid_request"),
        ("ce_id", b"\xff", "invalid_request"),
        ("ce_id", b"x" * 1025, "invalid_request"),
        ("priority", b"urgent", "invalid_request"),
        ("reply-topic", b"a/b", "invalid_request"),
        ("x-headrace-ttft-target-ms", b"soon", "invalid_request"),
        ("x-llm-d-slo-ttft-ms", b"0", "invalid_request"),
    ],
)
def test_headers_are_checked_by_name(name: str, value: bytes, code: str) -> None:
    with pytest.raises(HeadraceError) as refused:
        read(Record(TOPIC, 0, 0, None, plain().value, ((name, value),)))
    assert refused.value.code == code


def test_a_header_has_the_target_for_the_first_token() -> None:
    record = Record(TOPIC, 0, 0, None, plain().value, (("x-llm-d-slo-ttft-ms", b"1500"),))
    assert read(record).request.ttft_target == 1.5
    assert read(plain()).request.ttft_target is None


def test_unknown_fields_are_named_in_the_result_or_refused() -> None:
    order = read(plain(keep_alive="5m", webhook={}))
    result = result_record(order, ended(order))
    assert dict(result.headers)[IGNORED] == b"keep_alive, webhook"
    assert IGNORED not in dict(result_record(read(plain()), ended(order)).headers)
    with pytest.raises(InvalidRequest, match="keep_alive"):
        read_request(plain(keep_alive="5m"), INFO, Limits(strict_fields=True), 10_000, 100.0)


def test_keywords_that_are_not_held_are_named_in_the_result() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array", "uniqueItems": True}}}
    order = read(plain(response_format=form))
    assert dict(result_record(order, ended(order)).headers)[NOT_HELD] == b"uniqueItems"


def test_a_request_of_the_api_is_read_unchanged_without_a_result() -> None:
    request = make_request(priority=PriorityClass.INTERACTIVE)
    assert api_record(request).headers == ()
    request = msgspec.structs.replace(request, traceparent=TRACE[1].decode())
    assert api_record(request).headers == (TRACE,)
    order = read(came(api_record(request)))
    assert (order.request, order.reply, order.by_api) == (request, None, True)


def test_a_result_names_its_request_and_carries_the_trace() -> None:
    body = KafkaRequest(model=MODEL, prompt="hi")
    order = read(came(request_record(TOPIC, body, event_id="e1", source="/me", key=b"k", extra=(TRACE,)), 7))
    job = ended(order)
    result = came(result_record(order, job))
    assert (result.topic, result.key, read_result(result)) == (topics.RESULTS, b"k", job)
    assert TRACE in result.headers
    told = {name: result.header(name) for name in ("ce_subject", "ce_id", "ce_type", "headrace-source")}
    assert told == {
        "ce_subject": "e1",
        "ce_id": f"{order.request.id}.result",
        "ce_type": "dev.headrace.result.v1",
        "headrace-source": f"{TOPIC}/0/7",
    }


def test_a_dead_letter_is_the_record_and_the_reason() -> None:
    record = Record(TOPIC, 2, 7, b"k", b"\xff", (("x", b"\x00"),))
    with pytest.raises(HeadraceError) as refused:
        read(record)
    letter = came(dead_letter(record, refused.value))
    assert (letter.key, letter.value, letter.headers[0]) == (b"k", b"\xff", ("x", b"\x00"))
    assert letter.header("headrace-error-code") == "malformed_body"
    assert [letter.header(f"headrace-{name}") for name in ("topic", "partition", "offset")] == [TOPIC, "2", "7"]
    short = came(dead_letter(record, refused.value, whole=False))
    assert (short.value, short.header("headrace-truncated")) == (b"", "1")


def test_every_model_has_a_topic_of_its_own() -> None:
    assert topics.requests("smollm2") == "headrace.requests.smollm2"
    names = {topics.requests(name) for name in ("a/b", "a:b", "a_b", "x" * 128)}
    assert len(names) == 4
    assert all(topics.is_topic(name) for name in names)


@given(st.lists(st.integers(0, 30), unique=True), st.data())
def test_after_a_crash_only_unfinished_offsets_are_taken_again(order: list[int], data: st.DataObject) -> None:
    """From any commit, with gaps and any order of completion, the unfinished offsets are taken once."""
    first = Offsets(0)
    offsets = sorted(order)
    for offset in offsets:
        assert first.take(offset)
        assert not first.take(offset)
    done = data.draw(st.permutations(offsets))[: data.draw(st.integers(0, len(offsets)))]
    then = first.once(done)
    for offset in done:
        first.finish(offset)
    assert (first.watermark, first.metadata()) == then
    second = Offsets.parse(first.watermark, first.metadata())
    taken = [offset for offset in offsets if offset >= second.watermark and second.take(offset)]
    assert taken == [offset for offset in offsets if offset not in done]
    for offset in taken:
        second.finish(offset)
    assert (second.watermark, second.metadata()) == (max(offsets, default=-1) + 1, "")


def test_the_window_closes_before_the_metadata_is_full() -> None:
    offsets = Offsets(0)
    offset = 0
    while offsets.room > 0:
        assert offsets.take(offset)
        if offset % 2:
            offsets.finish(offset)
        offset += 1
    for even in range(2, offset, 4):
        offsets.finish(even)
    assert len(offsets.metadata()) <= MAX_METADATA_BYTES
    assert Offsets.parse(5, "written by another program").metadata() == ""
