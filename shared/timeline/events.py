"""Events of a request, derived from the marks of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from shared.protocol import Stay
from shared.timeline.phases import first_token_of
from shared.timeline.types import Event
from shared.token_log.interface import RequestMarks, Run


def events_of(marks: RequestMarks, until: float) -> list[Event]:
    """Return the events in order of time."""
    record, runs = marks.record, marks.runs
    events = [Event("admitted", record.created_at), *_events_of_queue(marks.stay)]
    for index, run in enumerate(runs):
        following = runs[index + 1] if index + 1 < len(runs) else None
        events += _events_of_run(marks, run, following, until, taken_over=index > 0)
    if record.finished_at is not None:
        events.append(
            Event("ended", record.finished_at, tokens=record.completion_tokens, finish=record.finish or None)
        )
    return sorted(events, key=lambda event: event.at)


def _events_of_queue(stay: Stay | None) -> Iterator[Event]:
    if stay is None:
        return
    yield Event("queued", stay.entered, position=position_then(stay))
    for start, stop in stay.pauses:
        yield Event("paused", start)
        if stop is not None:
            yield Event("resumed", stop)


def position_then(stay: Stay) -> int:
    """Return the position at which a request was queued."""
    return stay.backlog.position if stay.backlog else 1


def _events_of_run(
    marks: RequestMarks, run: Run, following: Run | None, until: float, *, taken_over: bool
) -> Iterator[Event]:
    name = run.worker or None
    if taken_over:
        yield Event("taken_over", run.acquired_at, name, tokens=run.next_seq)
    else:
        yield Event("pulled", run.acquired_at, name)
    first = first_token_of(marks, run, following.acquired_at if following else until)
    if first is not None and first == marks.record.first_token_at:
        yield Event("first_token", first, name)
    if run.mark is not None and run.mark.preemptions and run.marked_at is not None:
        count, seconds = run.mark.preemptions, run.mark.preempted
        yield Event("preempted", run.marked_at, name, count=count, seconds=seconds)
    if following is not None:
        last = following.logged_at if first is not None and following.logged_at else run.acquired_at
        lost = following.attempt > run.attempt
        yield Event("worker_lost" if lost else "handed_over", last, name, tokens=following.next_seq)


def workers_lost(marks: RequestMarks) -> int:
    """Return how many of the kept runs ended because their worker was lost."""
    return sum(after.attempt > before.attempt for before, after in pairwise(marks.runs))
