"""Progress in a partition: a contiguous watermark, and the finished offsets above it.

Offsets need not be dense: compaction and transaction markers leave gaps, which count as finished once a later
offset was taken.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_METADATA_BYTES = 4096  # of an offset that brokers accept by default
MAX_OFFSET_BYTES = 8  # that one offset may add to the metadata
MAX_RUN_OFFSETS = 1_000_000  # in one run


class Offsets:
    """Taken and finished offsets of one partition.

    Args:
        watermark: the first offset that may be unfinished.
        done: finished offsets above it.
    """

    def __init__(self, watermark: int, done: Iterable[int] = ()) -> None:
        self.watermark = watermark
        self._next = watermark  # the first offset that was not taken
        self._open: set[int] = set()
        self._done = {offset for offset in done if offset >= watermark}

    @property
    def unfinished(self) -> int:
        return len(self._open)

    @property
    def room(self) -> int:
        """Return how many more offsets may be taken so that the metadata fits in any order of completion."""
        return (MAX_METADATA_BYTES - len(self.metadata())) // MAX_OFFSET_BYTES - self.unfinished

    def take(self, offset: int) -> bool:
        """Take an offset. Returns False if it was taken or finished before."""
        if offset < self.watermark or offset in self._open:
            return False
        self._next = max(self._next, offset + 1)
        if offset in self._done:
            self._advance()
            return False
        self._open.add(offset)
        return True

    def finish(self, offset: int) -> None:
        """Mark a taken offset as finished."""
        self._open.discard(offset)
        self._done.add(offset)
        self._advance()

    def once(self, finished: Iterable[int]) -> tuple[int, str]:
        """Return the watermark and the metadata as they will be once these offsets are finished too."""
        then = Offsets(self.watermark, self._done)
        then._next, then._open = self._next, set(self._open)
        for offset in finished:
            then.finish(offset)
        return then.watermark, then.metadata()

    def _advance(self) -> None:
        """Move the watermark to the oldest open offset: all offsets below it are finished or do not exist."""
        watermark = min(self._open) if self._open else self._next
        if watermark == self.watermark:
            return
        self.watermark = watermark
        self._done = {offset for offset in self._done if offset >= self.watermark}

    def metadata(self) -> str:
        """Return the finished offsets above the watermark, as runs of their distance from it: `2,5-9`."""
        runs: list[list[int]] = []
        for offset in sorted(self._done):
            distance = offset - self.watermark
            if runs and runs[-1][1] == distance - 1:
                runs[-1][1] = distance
            else:
                runs.append([distance, distance])
        return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)

    @classmethod
    def parse(cls, watermark: int, metadata: str) -> Offsets:
        """Decode the metadata of a commit at `watermark`; foreign metadata is ignored."""
        done: set[int] = set()
        try:
            for part in filter(None, metadata[:MAX_METADATA_BYTES].split(",")):
                first, _, last = part.partition("-")
                begin, end = int(first), int(last or first)
                if not 0 <= begin <= end < begin + MAX_RUN_OFFSETS:
                    return cls(watermark)
                done.update(range(watermark + begin, watermark + end + 1))
        except ValueError:
            return cls(watermark)
        return cls(watermark, done)
