"""One simulated worker: continuous batching in which every answer advances by a token per step."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.sim.arrivals import Arrival

FIRST_TOKEN, END = 0, 1
EPSILON = 1e-9  # of a step; times are sums of floats


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way, with its times in seconds; None is not yet.

    Attributes:
        done: tokens that earlier workers have generated.
    """

    arrival: Arrival
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    done: int = 0


@dataclass(eq=False)
class SimWorker:
    """A worker between its creation and its removal.

    Its clock counts steps: with b answers, one takes `step_s[b]` seconds. A new answer begins with the next step.
    The time that its prompt takes is added before it, and holds up all answers, as a step with a part of a prompt
    does.
    """

    created: float
    step_s: Sequence[float]
    prompt_token_s: float
    ready: bool = False
    busy_s: float = 0.0
    version: int = 0
    jobs: dict[Job, float] = field(default_factory=dict)  # the step with which each began
    _marks: list[tuple[float, int, int, Job]] = field(default_factory=list)
    _steps: float = 0.0
    _prefill_s: float = 0.0  # still to be spent on prompts
    _now: float = 0.0
    _order: int = 0

    @property
    def seats(self) -> int:
        return len(self.step_s) - 1

    def advance(self, now: float) -> None:
        """Compute until `now`."""
        spent = now - self._now
        self._now = now
        if self.jobs:
            self.busy_s += spent
            prefill = min(self._prefill_s, spent)
            self._prefill_s -= prefill
            self._steps += (spent - prefill) / self.step_s[len(self.jobs)]

    def add(self, job: Job, now: float) -> None:
        """Begin or continue an answer."""
        self.advance(now)
        if not self.jobs:
            self._steps = float(math.ceil(self._steps - EPSILON))  # an idle engine begins at once
        begin = math.ceil(self._steps - EPSILON)
        self._prefill_s += (job.arrival.prompt_tokens + job.done) * self.prompt_token_s
        self.jobs[job] = begin
        if job.started is None:
            job.started = now
        if job.first_token is None:
            self._mark(begin + 1, FIRST_TOKEN, job)
        self._mark(begin + job.arrival.answer_tokens - job.done, END, job)

    def _mark(self, step: float, kind: int, job: Job) -> None:
        self._order += 1
        heapq.heappush(self._marks, (step, kind, self._order, job))
        self.version += 1

    def next_at(self) -> float:
        """Return the time of the next first token or end; infinity without answers."""
        if not self._marks:
            return math.inf
        left = max(0.0, self._marks[0][0] - self._steps)
        return self._now + self._prefill_s + left * self.step_s[len(self.jobs)]

    def collect(self, now: float) -> list[Job]:
        """Compute until `now` and return the answers that ended."""
        self.advance(now)
        ended: list[Job] = []
        while self._marks and self._marks[0][0] <= self._steps + EPSILON:
            _, kind, _, job = heapq.heappop(self._marks)
            if kind == FIRST_TOKEN:
                job.first_token = now
            else:
                job.ended = now
                del self.jobs[job]
                ended.append(job)
        self.version += 1
        return ended

    def hand_over(self, now: float) -> list[Job]:
        """Stop, and return the unfinished answers with the tokens that they have, oldest first."""
        self.advance(now)
        left = list(self.jobs)
        for job, begin in self.jobs.items():
            job.done += max(0, math.floor(self._steps + EPSILON - begin))
        self.jobs.clear()
        self._marks.clear()
        self.version += 1
        return left
