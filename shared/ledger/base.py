"""What a request is charged, and what is noted of whoever sent it. It knows nothing of plans or of Redis."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

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

    `attended` names the process whose HTTP request awaits its end, and tells the log of it then.
    """

    tenant: str
    model: str
    key_id: str = ""
    user: str = ""
    request_id: str = ""
    trace_id: str = ""
    attended: str = ""


class Row(msgspec.Struct, frozen=True):
    """One usage record; times in seconds since the epoch. `finish` is a finish reason or an error's code."""

    request_id: str
    tenant: str
    key_id: str
    user: str
    model: str
    state: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    created_at: float
    started_at: float | None
    first_token_at: float | None
    finished_at: float


@dataclass(frozen=True)
class Due:
    """What is to be looked at: an open request's entry, `age` seconds after its charge, or a row to be written."""

    request_id: str
    age: float
    entry: Entry | None = None
    row: Row | None = None
