"""Foreign data in Headrace's Redis keys, written by another program: counted, logged once and never shown."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec
import structlog
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shared.metrics.common import FOREIGN_ENTRIES

MAX_PLACES = 1024  # remembered, so that each is logged and counted once
# Errors of decoding a value that Headrace did not write: JSON, UTF-8, numbers, missing fields.
UNREADABLE = (msgspec.DecodeError, ValueError, KeyError, TypeError, IndexError, RecursionError)
SAFE = re.compile(r"[\w.:{}*~@/-]{1,200}", re.ASCII)

T = TypeVar("T")
S = TypeVar("S")

log = structlog.get_logger(__name__)


class ForeignEntries(Collector):
    """Foreign entries that one process found; a collector for Prometheus."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._places: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def note(self, structure: str, place: bytes, reason: str) -> None:
        """Count and log an entry, unless it was noted before.

        Args:
            structure: the part of the store, such as `queue`.
            place: its key or id, logged only if it cannot contain a person's text.
            reason: why it cannot be used, without its content.
        """
        if (structure, place) in self._places:
            return
        self._places[structure, place] = None
        if len(self._places) > MAX_PLACES:
            self._places.popitem(last=False)
        self.found[structure] += 1
        name = place.decode("ascii", "replace")
        log.error("foreign_entry", structure=structure, place=name if SAFE.fullmatch(name) else None, reason=reason)

    def read(self, structure: str, place: bytes | str, decode: Callable[[], T]) -> T | None:
        """Return the decoded value; None for foreign data, which is noted."""
        try:
            return decode()
        except UNREADABLE as error:
            name = place.encode(errors="replace") if isinstance(place, str) else place
            self.note(structure, name, f"unreadable: {type(error).__name__}")
            return None

    def read_all(self, structure: str, values: Iterable[tuple[bytes, T]], decode: Callable[[T], S]) -> list[S]:
        """Return the values that can be decoded, given each with its place."""
        found = (self.read(structure, place, lambda value=value: decode(value)) for place, value in values)  # type: ignore[misc]
        return [each for each in found if each is not None]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counters for Prometheus."""
        family = CounterMetricFamily(FOREIGN_ENTRIES.name, FOREIGN_ENTRIES.text, labels=FOREIGN_ENTRIES.labels)
        for structure, count in list(self.found.items()):
            family.add_metric([structure], count)
        yield family
