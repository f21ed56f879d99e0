"""What a client does, as a flow: a generator that yields what to send, read and wait for, and does none of it.

So the blocking and the asynchronous client share every decision, and a test needs neither network nor clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from shared.errors import ConfigError, HeadraceError, Unavailable

BACKOFF = 0.1  # seconds before the second attempt, doubling
BACKOFF_MOST = 2.0
DOUBLINGS = 10

Result = TypeVar("Result")


@dataclass(frozen=True)
class Send:
    """Send a request; a Reply comes back. With `stream` the body of a success is left for Read."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    stream: bool = False


@dataclass(frozen=True)
class Reply:
    """`headers` by their lower-case names; `content` is empty where it is streamed."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True)
class Read:
    """Read on in what the last Send opened; bytes come back, none at the end."""


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Emit:
    """Hand `item` to the caller."""

    item: Any


Command = Send | Read | Pause | Emit
Flow = Generator[Command, Any, Result]  # Unavailable is thrown into it where a Send or Read failed


class Run(Generic[Result]):
    """One run of a flow: gives command after command, and is told what became of each."""

    def __init__(self, flow: Flow[Result]) -> None:
        self._flow = flow
        self.answer: Reply | bytes | None = None
        self.failure: Unavailable | None = None
        self.ended = False
        self.result: Any = None

    def next(self) -> Command | None:
        """None at the end, with `result` set. Raises HeadraceError."""
        answer, failure = self.answer, self.failure
        self.answer = self.failure = None
        try:
            return self._flow.send(answer) if failure is None else self._flow.throw(failure)
        except StopIteration as end:
            self.ended, self.result = True, end.value
            return None
        except HeadraceError:
            self.ended = True
            raise


class Replicas:
    """The API's addresses: one is used until it fails, then the next. Raises ConfigError for what is no address."""

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ConfigError(f"{', '.join(urls) or 'nothing'} is no http address", param="url")
        self._urls = [url.rstrip("/") for url in urls]
        self._index = 0

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def current(self) -> str:
        return self._urls[self._index]

    def leave(self, url: str) -> None:
        """Others may have left it already."""
        if url == self.current:
            self._index = (self._index + 1) % len(self._urls)


@dataclass(frozen=True)
class Clock:
    """Seconds, and a chance from 0 to 1 that spreads the retries of many clients."""

    now: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random


class Patience:
    """How long a call goes on in spite of trouble: `seconds` from the first failure in a row."""

    def __init__(self, seconds: float, replicas: int, clock: Clock) -> None:
        self._seconds = seconds
        self._replicas = replicas
        self._clock = clock
        self._failures = 0
        self._since = 0.0

    def restart(self) -> None:
        """There was progress."""
        self._failures = 0

    def bear(self, error: HeadraceError) -> float:
        """Seconds to wait before the next attempt. Raises `error` where it is of no use, or too late."""
        if not error.retryable:
            raise error
        now = self._clock.now()
        if not self._failures:
            self._since = now
        self._failures += 1
        rounds, rest = divmod(self._failures, self._replicas)
        if rest:
            return 0.0  # another replica may be well
        wait: float = min(BACKOFF_MOST, BACKOFF * 2 ** min(rounds - 1, DOUBLINGS))
        wait *= 0.5 + self._clock.chance() / 2
        wait = max(wait, (error.retry_after or 0.0) * (1 + self._clock.chance() / 4))
        if now + wait > self._since + self._seconds:
            raise error
        return wait
