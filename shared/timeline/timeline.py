"""The timeline of a request, from its marks and, while it waits, what waits beside it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from shared.protocol import Backlog, PriorityClass, Stay
from shared.queue.interface import CLASS_WEIGHTS, Wait
from shared.timeline.events import events_of, position_then, workers_lost
from shared.timeline.phases import phases_of, totals_of
from shared.timeline.summary import summary_of
from shared.timeline.types import Phase, Position, QueueSnapshot, Timeline, Waiting
from shared.token_log.interface import RequestMarks


def timeline_of(marks: RequestMarks, now: float, wait: Wait | None = None) -> Timeline:
    """Return the timeline of a request at the server's time `now`; `wait`: of one that waits."""
    record = marks.record
    if wait is not None:
        marks = replace(marks, stay=wait.stay)
    until = record.finished_at or _latest(marks, now)
    phases = phases_of(marks, until)
    totals = totals_of(phases)
    found = Timeline(
        id=record.id,
        model=record.named_model,
        priority=record.priority.value,
        state=record.state.value,
        created_at=record.created_at,
        until=until,
        seconds=until - record.created_at,
        cause=totals.main(),
        summary="",
        totals=totals,
        queue=_views(marks.stay, record.priority, until, wait),
        positions=_positions(marks.stay, until, wait),
        prompt_tokens=record.prompt_tokens,
        cached_tokens=next((run.mark.cached_tokens for run in marks.runs if run.mark), 0),
        completion_tokens=record.completion_tokens,
        tokens_per_s=_decode_rate(record.completion_tokens, marks, phases),
        preemptions=sum(run.mark.preemptions for run in marks.runs if run.mark),
        workers_lost=workers_lost(marks),
        phases=phases,
        events=events_of(marks, until),
    )
    found.summary = summary_of(found)
    return found


def _latest(marks: RequestMarks, now: float) -> float:
    """Return `now`, or the last known time if that is later: an API process estimates the server's time."""
    known = [marks.record.created_at, marks.record.first_token_at, marks.logged_at]
    known += [run.acquired_at for run in marks.runs] + [marks.stay.entered if marks.stay else None]
    return max(now, *(at for at in known if at is not None))


def _views(stay: Stay | None, priority: PriorityClass, until: float, wait: Wait | None) -> list[QueueSnapshot]:
    views = [_view(stay.entered, priority, stay.backlog)] if stay and stay.backlog else []
    return [*views, _view(until, priority, wait.now)] if wait else views


def _positions(stay: Stay | None, until: float, wait: Wait | None) -> list[Position]:
    found = [Position(stay.entered, position_then(stay))] if stay else []
    found += [Position(at, position) for at, position in (stay.positions if stay else ())]
    return [*found, Position(until, wait.now.position)] if wait else found


def _view(at: float, priority: PriorityClass, backlog: Backlog) -> QueueSnapshot:
    interactive, standard, batch = backlog.by_class
    waiting = dict(zip(PriorityClass, backlog.by_class, strict=True))
    weights = sum(weight for each, weight in CLASS_WEIGHTS.items() if waiting[each] or each is priority)
    return QueueSnapshot(
        at=at,
        position=backlog.position,
        requests=Waiting(interactive, standard, batch),
        tokens=backlog.tokens,
        own_requests=backlog.own,
        own_tokens=backlog.own_tokens,
        tenants=backlog.tenants,
        share=round(CLASS_WEIGHTS[priority] / weights / max(1, backlog.tenants), 4),
    )


def _decode_rate(tokens: int, marks: RequestMarks, phases: list[Phase]) -> float | None:
    """Return the tokens per second of decoding, after the first token of each run."""
    seconds = sum(phase.seconds - phase.preempted for phase in phases if phase.name == "decode")
    starts = [run.next_seq for run in marks.runs] or [0]
    producing = sum(after > before for before, after in pairwise([*starts, tokens]))
    return round((tokens - producing) / seconds, 2) if seconds > 0 and tokens > producing else None
