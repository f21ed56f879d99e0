"""Flows: generators that yield what to send, read and wait for, without doing any input or output.

The blocking and the asynchronous client thus share every decision, and tests need neither network nor clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from shared.errors import ConfigError, HeadraceError, Unavailable

FIRST_PAUSE_S = 0.1  # before the second attempt; it doubles
MAX_PAUSE_S = 2.0
MAX_DOUBLINGS = 10

Result = TypeVar("Result")


@dataclass(frozen=True)
class Send:
    """Send a request; the response is a Reply. With `stream`, Read returns the body of a success."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    stream: bool = False


@dataclass(frozen=True)
class Reply:
    """HTTP response. `headers` have lower-case names; `content` is empty if the body is streamed."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True)
class Read:
    """Read from the body that the last Send opened; the response is bytes, empty at the end."""


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Emit:
    """Hand `item` to the caller."""

    item: Any


Command = Send | Read | Pause | Emit
Flow = Generator[Command, Any, Result]  # Unavailable is thrown into it if a Send or Read fails


class Run(Generic[Result]):
    """One run of a flow: returns its commands one by one, and passes the outcome of each to the flow.

    Attributes:
        response: set by the client before `next`, unless the command failed.
        failure: set by the client if the command failed.
    """

    def __init__(self, flow: Flow[Result]) -> None:
        self._flow = flow
        self.response: Reply | bytes | None = None
        self.failure: Unavailable | None = None
        self.ended = False
        self.result: Any = None

    def next(self) -> Command | None:
        """Return the next command, or None at the end, with `result` set. Raises HeadraceError."""
        response, failure = self.response, self.failure
        self.response = self.failure = None
        try:
            return self._flow.send(response) if failure is None else self._flow.throw(failure)
        except StopIteration as end:
            self.ended, self.result = True, end.value
            return None
        except HeadraceError:
            self.ended = True
            raise


class Replicas:
    """Addresses of the API's replicas: one is used until it fails, then the next.

    Raises:
        ConfigError: an address is not an http or https URL.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ConfigError(
                f"url must start with http:// or https://, got {', '.join(urls) or 'nothing'}", param="url"
            )
        self._urls = [url.rstrip("/") for url in urls]
        self._index = 0

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def current(self) -> str:
        return self._urls[self._index]

    def skip(self, url: str) -> None:
        """Switch to the next replica, unless another call has already switched."""
        if url == self.current:
            self._index = (self._index + 1) % len(self._urls)


@dataclass(frozen=True)
class Clock:
    """Source of the time in seconds, and of random numbers from 0 to 1 that spread the retries of clients."""

    now: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random


class RetryBudget:
    """Time limit of retries: `seconds` from the first of several failures in a row."""

    def __init__(self, seconds: float, replicas: int, clock: Clock) -> None:
        self._seconds = seconds
        self._replicas = replicas
        self._clock = clock
        self._failures = 0
        self._since = 0.0

    def reset(self) -> None:
        """Start over after progress."""
        self._failures = 0

    def pause_after(self, error: HeadraceError) -> float:
        """Return the seconds to wait before the next attempt. Raises `error` if a retry is useless or too late."""
        if not error.retryable:
            raise error
        now = self._clock.now()
        if not self._failures:
            self._since = now
        self._failures += 1
        rounds, rest = divmod(self._failures, self._replicas)
        if rest:
            return 0.0  # try the next replica at once
        wait: float = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(rounds - 1, MAX_DOUBLINGS))
        wait *= 0.5 + self._clock.jitter() / 2
        wait = max(wait, (error.retry_after or 0.0) * (1 + self._clock.jitter() / 4))
        if now + wait > self._since + self._seconds:
            raise error
        return wait
