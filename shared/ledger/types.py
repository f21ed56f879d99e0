"""What a request is charged, and what is noted of whoever sent it. It knows nothing of plans or of Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from shared.token_log.interface import RequestRecord

DAY = 86_400.0  # seconds


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """One limit, and what a request costs of it.

    `strategy` is one of the settings', `day` for a budget or `slots` for requests at a time; `name` is its own;
    `period` in ms; `estimated`: the cost is tokens that only the end tells exactly.
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
    """A limit after a charge: what is left, and in how many seconds all of it is free again.

    `wait` is the time in seconds after which the cost fits, if nobody else takes the room; 0 where it does now.
    """

    limit: Limit
    remaining: int
    reset: float
    wait: float


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose an open request is, for the log and the usage records.

    `channel` is that of the process that admitted it: its HTTP request may await the end, and tell the log of it.
    """

    tenant: str
    model: str
    key_id: str = ""
    user: str = ""
    http_request_id: str = msgspec.field(default="", name="request_id")  # as it is stored
    trace_id: str = ""
    channel: str = ""


@dataclass(frozen=True)
class Charge:
    """A request and what it is charged."""

    job_id: str
    entry: Entry
    limits: Sequence[Limit]


class End(msgspec.Struct, frozen=True):
    """What became of a request; times in seconds since the epoch. `finish` is a reason or an error's code."""

    state: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    created_at: float
    started_at: float | None
    first_token_at: float | None
    finished_at: float

    @classmethod
    def of(cls, record: RequestRecord) -> Self:
        """Of a request that has ended."""
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
    """What is to be looked at: what was open `age` seconds after its charge, or has an end that is unwritten."""

    job_id: str
    age: float
    entry: Entry
    end: End | None
