"""Types of the ledger: limits, charges, and the ends of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from shared.token_log.interface import RequestRecord

DAY_S = 86_400.0


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """One limit, and what a request costs of it.

    `strategy` is one of the setting's, `day` for a daily budget or `slots` for concurrent requests; `period` is in
    ms; with `estimated`, the cost is an estimate of tokens, which is corrected at the end.
    """

    strategy: str
    name: str
    amount: int
    period: int
    cost: int
    estimated: int = 0

    @property
    def unit(self) -> str:
        return "slots" if self.strategy == "slots" else "tokens" if self.estimated else "requests"


@dataclass(frozen=True)
class Standing:
    """State of a limit after a charge: what remains, and in how many seconds all of it is free again.

    `wait` is the time in seconds until the cost fits, if no other request takes the room; 0 if it fits now.
    """

    limit: Limit
    remaining: int
    reset: float
    wait: float


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sender of an open request, for the request log and the usage records.

    `channel` is the channel of the process that admitted it, whose HTTP request may wait for the end and log it.
    """

    tenant: str
    model: str
    key_id: str = ""
    user: str = ""
    http_request_id: str = msgspec.field(default="", name="request_id")  # its stored name
    trace_id: str = ""
    channel: str = ""


@dataclass(frozen=True)
class Charge:
    """A request, and the limits that it is charged to."""

    job_id: str
    entry: Entry
    limits: Sequence[Limit]


class End(msgspec.Struct, frozen=True):
    """The end of a request; times in seconds since the epoch. `finish` is a finish reason or an error code."""

    state: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    created_at: float
    started_at: float | None
    first_token_at: float | None
    finished_at: float

    @classmethod
    def from_record(cls, record: RequestRecord) -> Self:
        """Return the end of a finished request."""
        return cls(
            record.state.value,
            record.finish,
            record.prompt_tokens,
            record.completion_tokens,
            record.created_at,
            record.started_at,
            record.first_token_at,
            record.finished_at or record.created_at,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Due:
    """A request that is due: still open `age` seconds after its charge, or with an end that is not recorded."""

    job_id: str
    age: float
    entry: Entry
    end: End | None
