"""Interface of the policies that choose a worker for a request.

A policy is pure: it reads no clock and does no I/O, and what it remembers follows from its calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class WorkerState:
    """State of a worker that takes requests.

    Attributes:
        tokens_in_flight: estimated tokens of the requests that it holds or that wait for it.
        tokens_per_s: measured speed; 0 while it is unknown.
        first_token_s: moving average of its time to the first token; None while it is unknown.
        weight: its share under weighted policies; None if it is not set.
    """

    id: str
    tokens_in_flight: int = 0
    tokens_per_s: float = 0.0
    first_token_s: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class RequestTraits:
    """Facts about a request that policies use.

    Attributes:
        tokens: estimated tokens of prompt and answer.
        key: digest of what consistent hashing keeps together: a session, a user or a prefix.
        prefixes: digests of the beginnings of its prompt, the shortest first. Two requests of one tenant that begin
            with the same text share the digests of that text.
    """

    tokens: int = 1
    key: bytes = b""
    prefixes: tuple[bytes, ...] = ()


class Policy(Protocol):
    """Chooses a worker for each request of one model."""

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        """Return the id of one of `workers`, of which there is at least one, sorted by id."""
