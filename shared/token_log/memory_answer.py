"""One answer in the memory of a process, with the marks of its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.protocol import RunMark, Stay, TokenEvent
from shared.token_log.interface import Keepsake, RequestMarks, RequestRecord, Run
from shared.token_log.marks import MAX_RUNS


@dataclass
class MemoryAnswer:
    """State and log of a request."""

    record: RequestRecord
    expires: float
    epoch: int = 0
    owner: str = ""
    seq: int = 0
    losses: int = 0
    attempt: int = 0
    seq_then: int = 0
    alone: bool = False
    lost_alone: int = 0
    notify: str = ""
    watcher: str = ""
    carrier: str = ""
    keepsake: Keepsake | None = None
    prompt: tuple[int, ...] = ()
    recording: bytes = b""
    events: list[TokenEvent] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    stay: Stay | None = None
    logged_at: float | None = None

    def begin_run(self, attempt: int, now: float) -> None:
        """Note the run of a lease that was just acquired."""
        self.runs.append(Run(self.epoch, self.owner, now, attempt, self.seq, self.logged_at))
        if len(self.runs) > MAX_RUNS:
            del self.runs[1]

    def count_losses(self, attempt: int, most: int, *, alone: bool, moved: bool) -> int:
        """Count the lost workers, of which there may be `most`, and return `lost_alone` of the new lease.

        On its last attempt a request runs apart from others like it, so that a token proves it innocent. If it has
        not moved to another worker, its worker lives and only lost time, which is no evidence.
        """
        evidence = 0
        if self.attempt and attempt > self.attempt:
            produced = self.seq > self.seq_then
            self.losses = (0 if produced and self.losses == most - 1 else self.losses) + 1
            self.lost_alone = self.lost_alone + 1 if self.alone and moved else 0
            evidence = 0 if produced else self.lost_alone
        self.attempt, self.seq_then, self.alone = attempt, self.seq, alone
        return evidence

    def note_append(self, now: float, mark: RunMark | None, *, begun: bool) -> None:
        """Note an append; `begun`: the request had tokens before."""
        if mark is None or not self.runs:
            return
        self.logged_at = now
        run = self.runs[-1]
        run.mark, run.marked_at = mark, now
        if begun and run.first_append_at is None:
            run.first_append_at = now

    def marks(self) -> RequestMarks:
        return RequestMarks(self.record, tuple(self.runs), self.stay, self.logged_at)
