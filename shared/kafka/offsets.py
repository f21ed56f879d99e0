"""How far a partition is done: a contiguous watermark, and which offsets above it are done already.

Offsets need not be dense: compaction and transaction markers leave gaps, which count as done once something after
them was taken. It knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_METADATA = 4096  # bytes of an offset's metadata that brokers take by default
LONGEST_RUN = 8  # bytes that one offset may add to the metadata
MOST_RUN = 1_000_000  # offsets that one run may name


class Offsets:
    """One partition's taken and finished offsets.

    Args:
        watermark: the first offset that is not known to be done.
        done: offsets above it that are done.
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
        """How many more may be taken, so that the metadata fits whatever is done first."""
        return (MOST_METADATA - len(self.metadata())) // LONGEST_RUN - self.unfinished

    def take(self, offset: int) -> bool:
        """A record came; False where it is done already, or was taken before."""
        if offset < self.watermark or offset in self._open:
            return False
        self._next = max(self._next, offset + 1)
        if offset in self._done:
            self._advance()
            return False
        self._open.add(offset)
        return True

    def finish(self, offset: int) -> None:
        """What was taken is done."""
        self._open.discard(offset)
        self._done.add(offset)
        self._advance()

    def once(self, finished: Iterable[int]) -> tuple[int, str]:
        """The watermark and the metadata as they are once these have been finished too."""
        then = Offsets(self.watermark, self._done)
        then._next, then._open = self._next, set(self._open)
        for offset in finished:
            then.finish(offset)
        return then.watermark, then.metadata()

    def _advance(self) -> None:
        """Everything below the oldest open offset is done, or never was."""
        watermark = min(self._open) if self._open else self._next
        if watermark == self.watermark:
            return
        self.watermark = watermark
        self._done = {offset for offset in self._done if offset >= self.watermark}

    def metadata(self) -> str:
        """The offsets done above the watermark, as runs of their distance from it: `2,5-9`."""
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
        """What `metadata` told of a commit at `watermark`; what somebody else wrote there tells nothing."""
        done: set[int] = set()
        try:
            for part in filter(None, metadata[:MOST_METADATA].split(",")):
                first, _, last = part.partition("-")
                begin, end = int(first), int(last or first)
                if not 0 <= begin <= end < begin + MOST_RUN:
                    return cls(watermark)
                done.update(range(watermark + begin, watermark + end + 1))
        except ValueError:
            return cls(watermark)
        return cls(watermark, done)
