"""Phases of a request, derived from the marks of its runs."""

from __future__ import annotations

from collections.abc import Mapping

from shared.protocol import RequestState, RunMark
from shared.timeline.types import Cause, Phase, PhaseName, Totals
from shared.token_log.interface import RequestMarks, Run

CAUSES: Mapping[PhaseName, Cause] = {
    "intake": "intake",
    "queued": "queue",
    "paused": "pause",
    "preparing": "preparation",
    "waiting": "engine",
    "prefill": "prefill",
    "decode": "decode",
    "compute": "compute",
    "lost": "takeover",
    "resuming": "takeover",
}


class _Builder:
    """Phases so far; each begins where the one before ends."""

    def __init__(self, start: float) -> None:
        self.at = start
        self.phases: list[Phase] = []

    def add(self, name: PhaseName, end: float, worker: str | None) -> None:
        """Add a phase, unless it is empty."""
        if end > self.at:
            self.phases.append(Phase(name, self.at, end, worker))
            self.at = end

    def note_preempted(self, seconds: float) -> None:
        """Add to the time for which the last phase was preempted."""
        if self.phases:
            last = self.phases[-1]
            last.preempted = min(last.preempted + max(0.0, seconds), last.seconds)


def phases_of(marks: RequestMarks, until: float) -> list[Phase]:
    """Return the phases from admission to `until`, in order and without gaps."""
    record, runs = marks.record, marks.runs
    timeline = _Builder(record.created_at)
    _add_queue(timeline, marks, runs[0].acquired_at if runs else record.started_at or until)
    for index, run in enumerate(runs):
        following = runs[index + 1] if index + 1 < len(runs) else None
        end = following.acquired_at if following else until
        first = first_token_of(marks, run, end)
        last = end
        if following is not None:
            last = following.logged_at if first is not None and following.logged_at else timeline.at
        _add_run(timeline, marks, run, first, last)
        timeline.add("lost", end, run.worker)
    if not runs:
        timeline.add("prefill", record.first_token_at or until, None)
    timeline.add("decode" if record.first_token_at else "prefill", until, None)
    return timeline.phases


def _add_queue(timeline: _Builder, marks: RequestMarks, end: float) -> None:
    """Add the time until a worker acquired the request."""
    if marks.stay is not None:
        timeline.add("intake", min(marks.stay.entered, end), None)
        for start, stop in marks.stay.pauses:
            timeline.add("queued", min(start, end), None)
            timeline.add("paused", end if stop is None else min(stop, end), None)
    timeline.add("queued", end, None)


def _add_run(timeline: _Builder, marks: RequestMarks, run: Run, first: float | None, last: float) -> None:
    """Add what a run did until `last`; with its `first` token, if it produced one."""
    if run.next_seq > 0:
        timeline.add("resuming", last if first is None else first, run.worker)
    else:
        begun = run.mark or RunMark()
        timeline.add("preparing", min(timeline.at + begun.prepared, last), run.worker)
        timeline.add("waiting", min(timeline.at + begun.waited, last), run.worker)
        computes = first is None and marks.record.state is RequestState.COMPLETED
        timeline.add("compute" if computes else "prefill", last if first is None else first, run.worker)
        timeline.note_preempted(begun.preempted_early)
    if first is not None:
        timeline.add("decode", last, run.worker)
        if run.mark is not None:
            timeline.note_preempted(run.mark.preempted - run.mark.preempted_early)


def first_token_of(marks: RequestMarks, run: Run, end: float) -> float | None:
    """Return when a run that ended at `end` produced its first token; None if it did not."""
    first = marks.record.first_token_at
    if first is not None and run.acquired_at <= first <= end:
        return first
    return run.first_append_at


def totals_of(phases: list[Phase]) -> Totals:
    totals = Totals()
    for phase in phases:
        cause = CAUSES[phase.name]
        setattr(totals, cause, getattr(totals, cause) + phase.seconds - phase.preempted)
        totals.preemption += phase.preempted
    return totals


def workers_of(phases: list[Phase], cause: Cause) -> list[str]:
    """Return the workers of the phases that count for a cause, in order."""
    found = (
        phase.worker
        for phase in phases
        if phase.worker and (phase.preempted > 0 if cause == "preemption" else CAUSES[phase.name] == cause)
    )
    return list(dict.fromkeys(found))
