"""Looks for drafts that are not used take a bounded part of the time of wide batches."""

from __future__ import annotations

import pytest

from shared.protocol import SamplingParams
from tests.support.sequences import make_sequence
from workers.engine.sequence import Sequence
from workers.engine.speculation.look_schedule import MAX_REST_STEPS, MAX_SHARE, PATIENCE, LookSchedule

LOOK_S = 4e-5
STEPS = 2000


def sequences(count: int) -> list[Sequence]:
    return [make_sequence(SamplingParams(), [1, 2], [3]) for _ in range(count)]


def looks(schedule: LookSchedule, running: list[Sequence], step: float, used: list[Sequence] | None = None) -> int:
    """Run a step, and return the number of sequences that are looked at."""
    schedule.begin()
    due = [sequence for sequence in running if schedule.is_due(sequence)]
    schedule.record(due, used or [], LOOK_S * len(due), len(running), step)
    return len(due)


def test_one_answer_is_looked_at_in_each_step() -> None:
    schedule, running = LookSchedule(), sequences(1)
    assert sum(looks(schedule, running, 0.01) for _ in range(STEPS)) == STEPS


@pytest.mark.parametrize("step", [0.05, 0.1, 0.2])
def test_unused_looks_of_a_wide_batch_take_a_bounded_share(step: float) -> None:
    schedule, running = LookSchedule(), sequences(32)
    found = sum(looks(schedule, running, step) for _ in range(STEPS))
    assert found * LOOK_S < 1.2 * MAX_SHARE * STEPS * step
    assert found >= 32 * STEPS / (1 + MAX_REST_STEPS)


def test_a_used_draft_ends_the_rest_of_its_answer_alone() -> None:
    """And a few misses in a row, as where a copy is interrupted, begin none."""
    schedule, running = LookSchedule(), sequences(32)
    for _ in range(STEPS):
        looks(schedule, running, 0.05)
    for _ in range(MAX_REST_STEPS + 1):
        looks(schedule, running, 0.05, running[:1])
    for _ in range(PATIENCE):
        schedule.begin()
        assert schedule.is_due(running[0])
        schedule.record(running[:1], [], LOOK_S, 32, 0.05)


def test_steps_of_unknown_time_begin_no_rest() -> None:
    schedule, running = LookSchedule(), sequences(32)
    for _ in range(100):
        schedule.begin()
        assert all(schedule.is_due(sequence) for sequence in running)
        schedule.record(running, [], 1.0, 32, None)
