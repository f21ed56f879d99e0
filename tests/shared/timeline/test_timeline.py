"""Timelines of hand-made runs: phases, events, and the main cause."""

from __future__ import annotations

import msgspec
import pytest

from shared.protocol import Backlog, PriorityClass, RequestState, RunMark, Stay
from shared.queue.interface import Wait
from shared.timeline.timeline import timeline_of
from shared.timeline.types import Timeline
from shared.token_log.interface import RequestMarks, RequestRecord, Run

START = 1_700_000_000.0
BEHIND = Backlog(position=5, by_class=(2, 6, 0), own=1, tenants=2, tokens=800, own_tokens=100)


def marks(
    *runs: Run,
    first: float | None = None,
    end: float | None = None,
    tokens: int = 0,
    logged: float | None = None,
    stay: Stay | None = None,
) -> RequestMarks:
    """Return the marks of a request; times are in seconds after admission."""
    state = RequestState.COMPLETED if end else RequestState.RUNNING if runs else RequestState.QUEUED
    record = RequestRecord(
        id="req_1",
        model="m",
        tenant="own",
        priority=PriorityClass.STANDARD,
        state=state,
        created_at=START,
        started_at=runs[0].acquired_at if runs else None if first is None else START + 1,
        first_token_at=None if first is None else START + first,
        finished_at=None if end is None else START + end,
        prompt_tokens=600 if tokens else 0,
        completion_tokens=tokens,
        finish="stop" if end else "",
    )
    return RequestMarks(record, runs, stay, None if logged is None else START + logged)


def run(
    at: float,
    *,
    worker: str = "w1",
    attempt: int = 1,
    seq: int = 0,
    logged: float | None = None,
    first: float | None = None,
    mark: RunMark | None = None,
) -> Run:
    return Run(
        attempt,
        worker,
        START + at,
        attempt,
        seq,
        None if logged is None else START + logged,
        None if first is None else START + first,
        mark,
        None if mark is None else START + at + 1,
    )


def phases(timeline: Timeline) -> list[tuple[str, float, float]]:
    return [(each.name, each.start - START, each.end - START) for each in timeline.phases]


def names(timeline: Timeline) -> list[str]:
    return [event.name for event in timeline.events]


CAUSES = {
    "queue": (
        marks(run(8.0, mark=RunMark()), first=9.0, end=10.0, tokens=10, stay=Stay(START, BEHIND)),
        "8.0 s of 10.0 s (80 %) went into waiting in the queue, which it entered at position 5 of class standard, "
        "beside 8 waiting requests (2 interactive, 6 standard, 1 of its own tenant).",
    ),
    "pause": (
        marks(
            run(9.0, mark=RunMark()),
            first=9.5,
            end=10.0,
            tokens=3,
            stay=Stay(START, BEHIND, (), ((START, START + 2), (START + 1, START + 8))),
        ),
        "The queue was paused for 8.0 s of 10.0 s (80 %).",
    ),
    "intake": (
        marks(run(8.0, mark=RunMark()), first=9.0, end=10.0, tokens=3, stay=Stay(START + 7)),
        "7.0 s of 10.0 s (70 %) went into the way into the queue, through Kafka if requests are written there "
        "first.",
    ),
    "preparation": (
        marks(run(1.0, mark=RunMark(0, 7.0, 1.0)), first=9.5, end=10.0, tokens=3),
        "7.0 s of 10.0 s (70 %) went into preparing the request on worker w1: chat template, tokenizing and "
        "grammar.",
    ),
    "engine": (
        marks(run(1.0, mark=RunMark(0, 1.0, 6.0)), first=9.0, end=10.0, tokens=3),
        "6.0 s of 10.0 s (60 %) went into waiting on worker w1 for a seat or cache blocks, beside the requests "
        "that it ran already.",
    ),
    "prefill": (
        marks(run(1.0, mark=RunMark(512, 0.5, 0.5)), first=9.0, end=10.0, tokens=3),
        "7.0 s of 10.0 s (70 %) went into computing a prompt of 600 tokens (512 from the prefix cache) on worker "
        "w1 before the first token.",
    ),
    "decode": (
        marks(run(0.5, mark=RunMark()), first=1.0, end=11.0, tokens=101),
        "10.0 s of 11.0 s (91 %) went into writing 101 tokens at 10.0 tokens per second on worker w1.",
    ),
    "preemption": (
        marks(run(1.0, mark=RunMark(0, 0.0, 0.0, 3, 6.0, 0.0)), first=2.0, end=10.0, tokens=5),
        "6.0 s of 10.0 s (60 %) went into 3 preemptions on worker w1, which gave its place to other requests.",
    ),
    "takeover": (
        marks(
            run(0.5, mark=RunMark()),
            run(8.0, worker="w2", attempt=2, seq=4, logged=2.0, first=9.0, mark=RunMark()),
            first=1.0,
            end=10.0,
            tokens=8,
        ),
        "7.0 s of 10.0 s (70 %) went into a change of worker: w1 was lost after 4 tokens, and w2 continued.",
    ),
    "compute": (
        marks(run(1.0, mark=RunMark(0, 1.0)), end=10.0),
        "8.0 s of 10.0 s (80 %) went into computing the result on worker w1.",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_sentence_names_the_main_cause(cause: str) -> None:
    given, sentence = CAUSES[cause]
    found = timeline_of(given, START + 99)
    assert (found.cause, found.summary) == (cause, sentence)
    totals = msgspec.structs.asdict(found.totals)
    assert sum(totals.values()) == pytest.approx(found.seconds), "each second has one cause"
    assert [each.start for each in found.phases[1:]] == [each.end for each in found.phases[:-1]]


def test_a_cause_names_all_workers_it_ran_on() -> None:
    given = marks(
        run(0.5, mark=RunMark()),
        run(5.0, worker="w2", attempt=2, seq=31, logged=4.0, first=5.5, mark=RunMark()),
        first=1.0,
        end=10.0,
        tokens=76,
    )
    assert timeline_of(given, START + 99).summary.endswith(
        "writing 76 tokens at 9.9 tokens per second on 2 workers."
    )


def test_phases_of_a_lost_worker_and_its_successor() -> None:
    found = timeline_of(CAUSES["takeover"][0], START + 99)
    assert phases(found) == [
        ("queued", 0.0, 0.5),
        ("prefill", 0.5, 1.0),
        ("decode", 1.0, 2.0),
        ("lost", 2.0, 8.0),
        ("resuming", 8.0, 9.0),
        ("decode", 9.0, 10.0),
    ]
    assert names(found) == ["admitted", "pulled", "first_token", "worker_lost", "taken_over", "ended"]
    assert (found.workers_lost, found.tokens_per_s) == (1, 3.0)


def test_a_worker_lost_before_its_first_token_lost_all_its_time() -> None:
    given = marks(run(1.0), run(6.0, worker="w2", attempt=2, mark=RunMark(0, 1.0)), first=8.0, end=9.0, tokens=2)
    found = timeline_of(given, START + 99)
    assert phases(found) == [
        ("queued", 0.0, 1.0),
        ("lost", 1.0, 6.0),
        ("preparing", 6.0, 7.0),
        ("prefill", 7.0, 8.0),
        ("decode", 8.0, 9.0),
    ]
    assert found.cause == "takeover"


def test_a_request_that_was_handed_over_lost_no_worker() -> None:
    given = marks(run(1.0), run(2.0, worker="w2", attempt=1, mark=RunMark()), first=3.0, end=9.0, tokens=2)
    found = timeline_of(given, START + 99)
    assert ("handed_over" in names(found), "worker_lost" in names(found), found.workers_lost) == (True, False, 0)


def test_a_waiting_request_shows_its_positions_and_share() -> None:
    now = Backlog(position=2, by_class=(0, 3, 1), own=0, tenants=2, tokens=400, own_tokens=0)
    found = timeline_of(marks(), START + 4, Wait(now, Stay(START, BEHIND, ((START + 3, 4),))))
    assert [(each.at - START, each.position) for each in found.queue] == [(0.0, 5), (4.0, 2)]
    assert [(each.at - START, each.position) for each in found.positions] == [(0.0, 5), (3.0, 4), (4.0, 2)]
    assert [each.share for each in found.queue] == [0.1, 0.4], "4 of 20 and 4 of 5, halved between two tenants"
    assert found.summary.startswith("4.0 s of 4.0 s so far (100 %) went into waiting in the queue, ")
    assert found.summary.endswith(", and is at position 2 now.")


def test_a_request_that_waits_alone_waits_for_a_worker() -> None:
    alone = Backlog(position=1, by_class=(0, 0, 0), own=0, tenants=1, tokens=0, own_tokens=0)
    found = timeline_of(marks(), START + 4, Wait(alone, Stay(START)))
    assert found.summary == (
        "4.0 s of 4.0 s so far (100 %) went into waiting in the queue, where nothing else waited: no worker had "
        "room."
    )


def test_a_request_in_a_paused_queue_shows_since_when() -> None:
    wait = Wait(BEHIND, Stay(START + 1, None, (), ((START + 2, None),)))
    found = timeline_of(marks(), START + 8, wait)
    assert phases(found) == [("intake", 0.0, 1.0), ("queued", 1.0, 2.0), ("paused", 2.0, 8.0)]
    assert names(found) == ["admitted", "queued", "paused"]
    assert found.summary == "The queue was paused for 6.0 s of 8.0 s so far (75 %)."


def test_events_of_the_queue_have_its_pauses_and_the_position() -> None:
    found = timeline_of(CAUSES["pause"][0], START + 99)
    assert names(found)[:6] == ["admitted", "queued", "paused", "paused", "resumed", "resumed"]
    assert found.events[1].position == 5


def test_an_answer_in_progress_counts_up_to_now() -> None:
    found = timeline_of(marks(run(1.0, mark=RunMark()), first=2.0, tokens=31), START + 12)
    assert (found.state, found.seconds, found.tokens_per_s) == ("running", 12.0, 3.0)
    assert phases(found)[-1] == ("decode", 2.0, 12.0)


def test_a_clock_that_lags_hides_no_event() -> None:
    """Given a present time before the last events, as an API process may estimate it."""
    found = timeline_of(marks(run(1.0, mark=RunMark()), first=2.0, tokens=1, stay=Stay(START + 0.5)), START + 0.25)
    assert names(found) == ["admitted", "queued", "pulled", "first_token"]
    assert phases(found)[-1] == ("prefill", 1.0, 2.0)


def test_preemptions_before_the_first_token_shorten_the_prefill() -> None:
    given = marks(run(1.0, mark=RunMark(0, 0.0, 0.0, 2, 3.0, 2.0)), first=5.0, end=10.0, tokens=3)
    found = timeline_of(given, START + 99)
    assert (found.totals.prefill, found.totals.decode, found.totals.preemption) == (2.0, 4.0, 3.0)


def test_a_preemption_is_counted_though_all_tokens_came_at_once() -> None:
    given = marks(run(0.0, mark=RunMark(0, 0.0, 0.0, 1, 3.0, 3.0)), first=5.0, end=5.0, tokens=4)
    found = timeline_of(given, START + 5)
    assert (found.totals.prefill, found.totals.preemption) == (2.0, 3.0)


def test_a_request_of_an_older_worker_has_a_timeline() -> None:
    """Given a record without marks, as older workers write it."""
    given = marks(first=2.0, end=4.0, tokens=5)
    found = timeline_of(given, START + 99)
    assert phases(found) == [("queued", 0.0, 1.0), ("prefill", 1.0, 2.0), ("decode", 2.0, 4.0)]
