"""Requests, results and dead letters as records: CloudEvents 1.0 in Kafka's binary mode, or plain JSON.

A request's id is a function of its record, so that a record that is delivered again is the same request.

Reference: CloudEvents 1.0.2, "Kafka Protocol Binding", and W3C "Trace Context".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Protocol

import msgspec
from pydantic import Field

from shared.adapters.adapter import Adapter
from shared.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
    MalformedBody,
    ModelNotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from shared.kafka import topics
from shared.models.worker_registry import ModelInfo
from shared.protocol import PriorityClass, Request, decode_request, encode, record_digest, record_job_id
from shared.schemas.common_fields import PriorityField, priority_class
from shared.schemas.native.jobs import Job, JobRequest
from shared.schemas.parameter_fields import parameter_field
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.tracing.trace_context import valid_traceparent
from shared.validation.request_limits import Limits, check_request, fit_to_model
from shared.validation.schema_check import NOT_HELD, not_held
from shared.validation.ttft_target import TARGET_HEADERS, joined, with_target

REQUEST_TYPE = "dev.headrace.request.v1"
RESULT_TYPE = "dev.headrace.result.v1"
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
MAX_HEADER_BYTES = 1024
MAX_KEPT_BYTES = 16 * 1024  # of the headers that a shortened record keeps
TRUNCATED = "headrace-truncated"
IGNORED = "headrace-ignored-fields"
USUAL_CLASS = PriorityClass.BATCH

Headers = tuple[tuple[str, bytes], ...]


class KafkaRequest(JobRequest):
    """Value of a request's record: the body of POST /v1/jobs, and its tenant."""

    priority: PriorityField = parameter_field(
        "priority", default=USUAL_CLASS.value, note="the header of that name takes precedence"
    )
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@-]{1,128}$")] = Field(
        "default", description="whose it is: tenants of a class take turns"
    )


class Consumed(Protocol):
    """A record as kafka-python returns it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Record:
    """One consumed record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: Headers = ()

    @classmethod
    def from_consumed(cls, record: Consumed) -> Record:
        headers = tuple((name, value or b"") for name, value in record.headers or ())
        return cls(record.topic, record.partition, record.offset, record.key, record.value or b"", headers)

    @property
    def source(self) -> str:
        """Return topic, partition and offset as one word."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def traceparent(self) -> str:
        """Return the trace context; empty if it is missing or invalid. A record is never refused for it."""
        given = next((value for key, value in self.headers if key.lower() == TRACEPARENT), b"")
        return valid_traceparent(given.decode("latin-1"))

    def header(self, name: str) -> str | None:
        """Return the first header of that name. Raises InvalidRequest if it is too long or not text."""
        return next(self.header_values(name), None)

    def header_values(self, name: str) -> Iterator[str]:
        """Yield the values of all headers of that name. Raises InvalidRequest as `header` does."""
        for value in (value for key, value in self.headers if key.lower() == name):
            if len(value) > MAX_HEADER_BYTES:
                raise InvalidRequest(f"the header {name} must not exceed {MAX_HEADER_BYTES} bytes", param=name)
            try:
                yield value.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"the header {name} must be UTF-8", param=name) from None


@dataclass(frozen=True)
class Outgoing:
    """One record to write."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers = field(default=())

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of KafkaProducer.send."""
        return {"topic": self.topic, "key": self.key, "value": self.value, "headers": list(self.headers)}


@dataclass(frozen=True)
class Order:
    """A request, and the topic of its result; with None, no result is written. `ignored` names unknown fields."""

    request: Request
    record: Record
    reply: str | None
    by_api: bool = False
    ignored: str = ""


# requests


def request_record(
    topic: str,
    body: KafkaRequest,
    *,
    event_id: str,
    source: str,
    key: bytes | None = None,
    reply_topic: str | None = None,
    extra: Headers = (),
) -> Outgoing:
    """Return a request record for `topic`; its result goes to `reply_topic`, by default headrace.results.

    Args:
        event_id, source: the event's id, which is the idempotency key, and its source.
        key: decides the partition; default: the tenant.
        extra: additional headers, such as those of a trace.
    """
    priority = priority_class(body.priority, USUAL_CLASS)
    headers = [*_event(event_id, source, REQUEST_TYPE), ("priority", priority.value.encode()), *extra]
    if reply_topic is not None:
        headers.append(("reply-topic", reply_topic.encode()))
    value = body.model_dump_json(exclude_unset=True).encode()
    return Outgoing(topic, key or body.tenant.encode(), value, tuple(headers))


def api_record(request: Request) -> Outgoing:
    """Return the record of a request that the API admitted, for the topic of its model."""
    trace = ((TRACEPARENT, request.traceparent.encode()),) if request.traceparent else ()
    return Outgoing(topics.api_requests(request.model), request.tenant.encode(), encode(request), trace)


def read_request(
    record: Record,
    model: ModelInfo,
    limits: Limits,
    most_bytes: int,
    now: float,
    *,
    any_name: bool = False,
    adapters: Mapping[str, Adapter] = MappingProxyType({}),
) -> Order:
    """Decode and validate a record of a topic of `model`.

    Args:
        now: the server's time.
        any_name: the record may name any model, or none; its topic decides.
        adapters: registered LoRA adapters by name; those of the model may be named in its topic.

    Raises InvalidRequest (or a subclass), ModelNotFound, PayloadTooLarge, UnsupportedMediaType, DeadlineExceeded.
    """
    if record.topic == topics.api_requests(model.name):  # its body was not too large, but its record may be longer
        try:
            return Order(decode_request(record.value), record, None, by_api=True)
        except msgspec.DecodeError as error:
            raise MalformedBody(f"not a request of the API: {error}") from None
    if len(record.value) > most_bytes:
        raise PayloadTooLarge(f"the value must not exceed {most_bytes} bytes, got {len(record.value)}")
    event_id = _check_event(record)
    body = validate(record.value, KafkaRequest, strict_fields=limits.strict_fields)
    request = _complete(body, record, event_id, now)
    adapter = adapters.get(request.model)
    if adapter is not None and adapter.base == model.name:
        request = msgspec.structs.replace(request, model=model.name, adapter=adapter.ref)
    elif any_name:
        request = msgspec.structs.replace(request, model=model.name)
    if request.model != model.name:
        raise ModelNotFound(f"model must be {model.name} in this topic", param="model")
    check_request(request, limits)
    if request.deadline is not None and request.deadline <= now:
        raise DeadlineExceeded("the request's deadline passed before it was taken from its topic")
    request = fit_to_model(request, model, limits)
    reply = record.header("reply-topic") or topics.RESULTS
    if not topics.is_topic(reply):
        raise InvalidRequest("reply-topic must have 1 to 249 characters of A-Za-z0-9._-", param="reply-topic")
    return Order(request, record, reply, ignored=ignored_fields(body))


def _check_event(record: Record) -> str | None:
    """Return the id of a CloudEvent in binary mode; None for plain JSON."""
    media = (record.header("content-type") or "application/json").split(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMediaType("content-type must be application/json; CloudEvents must use the binary mode")
    for name, wanted in (("ce_specversion", "1.0"), ("ce_type", REQUEST_TYPE)):
        if record.header(name) not in (None, wanted):
            raise InvalidRequest(f"{name} must be {wanted}", param=name)
    event_id = record.header("ce_id")
    if event_id == "":
        raise InvalidRequest("ce_id must not be empty", param="ce_id")
    return event_id


def _complete(body: KafkaRequest, record: Record, event_id: str | None, now: float) -> Request:
    """Return the request, with an id and a seed derived from the record."""
    if event_id is not None:
        digest = record_digest("event", body.tenant, event_id)
    else:
        digest = record_digest("record", record.topic, record.partition, record.offset)
    seed = int.from_bytes(digest[16:24]) >> 1 if body.given_seed is None else body.given_seed
    target = {each: joined(values) for each in TARGET_HEADERS if (values := [*record.header_values(each)])}
    draft = with_target(body.to_request(body.tenant), target)
    return msgspec.structs.replace(
        draft,
        id=record_job_id(digest),
        priority=_priority(record.header("priority"), body),
        params=msgspec.structs.replace(draft.params, seed=seed),
        created_at=now,
        deadline=draft.deadline if body.timeout is None else now + body.timeout,
        traceparent=record.traceparent,
    )


def _priority(name: str | None, body: KafkaRequest) -> PriorityClass:
    """Return the class that the header `name` gives, or the body's."""
    if not name:
        return priority_class(body.priority, USUAL_CLASS)
    if name not in list(PriorityClass):
        raise InvalidRequest(f"priority must be one of {', '.join(PriorityClass)}", param="priority")
    return PriorityClass(name)


# results


def result_record(order: Order, job: Job) -> Outgoing:
    """Return the result record of an order that wants one."""
    assert order.reply is not None
    record = order.record
    headers = [
        *_event(f"{job.id}.result", f"/headrace/{job.model}", RESULT_TYPE),
        ("headrace-source", record.source.encode()),
    ]
    if order.request.traceparent:
        headers.append((TRACEPARENT, order.request.traceparent.encode()))
    if record.traceparent:
        headers += _first_of(tuple(header for header in record.headers if header[0].lower() == TRACESTATE))
    subject = record.header("ce_id")
    if subject is not None:
        headers.append(("ce_subject", subject.encode()))
    if order.ignored:
        headers.append((IGNORED, order.ignored.encode()))
    if keywords := not_held([order.request]):
        headers.append((NOT_HELD, keywords.encode()))
    return Outgoing(order.reply, record.key, msgspec.json.encode(job), tuple(headers))


def read_result(record: Record) -> Job:
    """Decode the job in a result record. Raises MalformedBody."""
    try:
        return _job_decoder.decode(record.value)
    except msgspec.DecodeError as error:
        raise MalformedBody(f"not a result: {error}") from None


def without_long_key(out: Outgoing) -> Outgoing:
    """Return the record without its key if that may be why a topic refuses the record as too large."""
    return out if len(out.key or b"") <= MAX_HEADER_BYTES else replace(out, key=None)


def dead_letter(record: Record, error: HeadraceError, *, whole: bool = True) -> Outgoing:
    """Return a dead letter: an invalid record with the reason.

    If it is not `whole`, because the record is too large, it has no value, no long key, and MAX_KEPT_BYTES of its
    headers.
    """
    why = {
        "headrace-error-code": error.code,
        "headrace-error-message": error.message[:MAX_HEADER_BYTES],
        "headrace-topic": record.topic,
        "headrace-partition": str(record.partition),
        "headrace-offset": str(record.offset),
    }
    if not whole:
        why[TRUNCATED] = str(len(record.value))
    added = tuple((name, text.encode()) for name, text in why.items())
    if whole:
        return Outgoing(topics.DEAD_LETTERS, record.key, record.value, (*record.headers, *added))
    kept = _first_of(record.headers)
    return without_long_key(Outgoing(topics.DEAD_LETTERS, record.key, b"", (*kept, *added)))


def _first_of(headers: Headers) -> Headers:
    """Return as many of the first headers as have MAX_KEPT_BYTES together."""
    sizes = itertools.accumulate(len(name.encode()) + len(value) for name, value in headers)
    return tuple(header for header, size in zip(headers, sizes, strict=True) if size <= MAX_KEPT_BYTES)


_job_decoder = msgspec.json.Decoder(Job)


def _event(event_id: str, source: str, kind: str) -> list[tuple[str, bytes]]:
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_source": source,
        "ce_type": kind,
        "content-type": "application/json",
    }
    return [(name, text.encode()) for name, text in attributes.items()]
