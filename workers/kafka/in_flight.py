"""Request of a record, from its adoption until its result is written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from shared.errors import PayloadTooLarge
from shared.kafka import topics
from shared.kafka.message import Order, Outgoing, Record, result_record, without_long_key
from shared.protocol import ErrorInfo
from shared.redis.foreign import UNREADABLE
from shared.schemas.native.jobs import Job
from shared.token_log.interface import Adoption, RequestRecord
from shared.tracing.interface import Span
from workers.kafka.consumer_thread import TakenRecord

RESULT_TOO_LONG = PayloadTooLarge("the result is too long for its topic; read it through the job's links")
MAX_SET_ASIDE_BYTES = 2**26  # of records that wait for room, which leave the window to others


@dataclass(frozen=True)
class InFlight:
    """A request of a record, until its result is written."""

    order: Order
    taken: TakenRecord
    span: Span | None = None  # of moving it into its lane, where tracing is on

    @property
    def id(self) -> str:
        return self.order.request.id

    def adoption(self, *, create: bool) -> Adoption:
        """Return the adoption of the request's log.

        A request from the API is never created here: its log exists, or the API has taken the request back.
        """
        return Adoption(self.order.request, self.taken.record.source, create=create and not self.order.by_api)

    def is_of(self, record: RequestRecord) -> bool:
        """Return False if an earlier record had the same id."""
        return record.source == self.taken.record.source


class _Identified(msgspec.Struct):
    """The id of a request whose other fields a worker of another version cannot read."""

    id: str


_identify = msgspec.json.Decoder(_Identified).decode


def api_job_id(record: Record, model: str) -> str | None:
    """Return the id of the API's request in a record of its topic; None if it is no such record."""
    if record.topic != topics.api_requests(model):
        return None
    try:
        return _identify(record.value).id
    except UNREADABLE:
        return None


def set_aside(waiting: Sequence[InFlight]) -> int:
    """Return how many of the requests that wait for room are small enough together to be kept beside the window."""
    own = [len(item.taken.record.value) for item in waiting if not item.order.by_api]
    return sum(size <= MAX_SET_ASIDE_BYTES for size in itertools.accumulate(own))


def result_without_answer(order: Order, record: RequestRecord) -> Outgoing:
    """Return a result that says that the answer is too long."""
    job = Job.from_record(record)
    job.error = ErrorInfo.from_error(RESULT_TOO_LONG)
    return without_long_key(result_record(order, job))
