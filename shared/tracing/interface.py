"""Interface of a tracer: it starts spans, and each span has a trace context for those that follow.

Reference: OpenTelemetry specification, "Tracing API".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

Value = str | int | float | Sequence[str]


class Kind(Enum):
    """Role of a span in its trace."""

    SERVER = "server"
    PRODUCER = "producer"
    CONSUMER = "consumer"
    INTERNAL = "internal"


@dataclass(frozen=True)
class SpanStart:
    """Facts about a span that are known when it starts; `conventions` makes them."""

    name: str
    kind: Kind
    attributes: Mapping[str, Value] = field(default_factory=dict)


class Span(Protocol):
    """One operation of a trace, exported when it ends."""

    @property
    def traceparent(self) -> str:
        """The trace context under which other spans become children of this one; it says whether to sample them."""

    def child(self, start: SpanStart) -> Span:
        """Start a span below this one in the same process."""

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def event(self, name: str) -> None:
        """Note that something happened now."""

    def end(self, error: str = "", *, fault: bool = True) -> None:
        """End the span, with the code of the `error` that ended it; without `fault`, its status is not an error."""


class Tracer(Protocol):
    """Starts the spans of one process, all in one thread."""

    def start(self, start: SpanStart, parent: str = "", *, own: str = "", link: str = "") -> Span:
        """Start a span.

        Args:
            parent: trace context to continue, sampled as it says; empty or invalid: begin a trace.
            own: trace context whose ids the span gets, so that other processes know them; default: random ids.
            link: trace context of a related span that is not the parent.
        """

    async def close(self) -> None:
        """Export the ended spans, within a short limit; later ones are dropped."""
