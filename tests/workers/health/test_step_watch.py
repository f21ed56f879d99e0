"""Steps that count as hung, on a clock that the test moves."""

from __future__ import annotations

import pytest

from workers.engine_thread import Step
from workers.health.step_watch import COMPUTING_FACTOR, INTERVAL_S, Hang, StepWatch

STEP_TIMEOUT_S = 4.0


class Engine:
    """Engine on a clock of its own, observed at regular intervals."""

    def __init__(self) -> None:
        self.watch = StepWatch(STEP_TIMEOUT_S)
        self.now = 1000.0
        self.cpu = 7.0
        self.step: Step | None = None

    def begin(self, number: int) -> None:
        self.step = Step(number, self.now)

    def pass_time(self, seconds: float, *, share: float = 0.0, interval: float = INTERVAL_S) -> Hang | None:
        """Let time pass, in which the engine computes for a share. Return the first hang."""
        end = self.now + seconds
        while self.now < end:
            self.now += interval
            self.cpu += share * interval
            if hang := self.watch.observe(self.step, self.now, lambda: self.cpu):
                return hang
        return None


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_a_waiting_step_is_found_within_five_seconds(engine: Engine) -> None:
    engine.pass_time(0.1, interval=0.1)
    began = engine.now
    engine.begin(1)
    hang = engine.pass_time(60)
    assert hang is not None
    assert hang.kind == "waiting"
    assert STEP_TIMEOUT_S <= engine.now - began <= STEP_TIMEOUT_S + INTERVAL_S


def test_a_thread_that_polls_in_vain_waits(engine: Engine) -> None:
    engine.begin(1)
    hang = engine.pass_time(60, share=0.005)
    assert hang is not None
    assert hang.kind == "waiting"


def test_a_step_that_computes_may_take_long(engine: Engine) -> None:
    """Given a long prompt on a machine of which the engine gets a tenth, no hang is reported for half an hour."""
    engine.begin(1)
    assert engine.pass_time(1800, share=0.1) is None


def test_an_endless_loop_is_found_by_its_cpu_time(engine: Engine) -> None:
    engine.begin(1)
    assert engine.pass_time((COMPUTING_FACTOR - 1) * STEP_TIMEOUT_S, share=1.0) is None
    hang = engine.pass_time(2 * STEP_TIMEOUT_S, share=1.0)
    assert hang is not None
    assert hang.kind == "computing"


def test_a_child_process_that_ends_counts_as_progress(engine: Engine) -> None:
    """Given a compiler that ends, whose CPU time is no longer counted, the step does not hang."""
    engine.begin(1)
    engine.pass_time(STEP_TIMEOUT_S / 2, share=1.0)
    engine.pass_time(STEP_TIMEOUT_S * 0.9)
    engine.cpu -= 1.0
    assert engine.pass_time(STEP_TIMEOUT_S * 0.9) is None


def test_pauses_between_computing_do_not_add_up(engine: Engine) -> None:
    engine.begin(1)
    for _ in range(20):
        assert engine.pass_time(STEP_TIMEOUT_S * 0.9) is None
        assert engine.pass_time(INTERVAL_S, share=0.5) is None


def test_each_step_has_its_own_time(engine: Engine) -> None:
    for number in range(20):
        engine.begin(number)
        assert engine.pass_time(STEP_TIMEOUT_S * 0.9) is None


def test_an_idle_engine_does_not_hang(engine: Engine) -> None:
    assert engine.pass_time(600) is None


def test_a_suspended_process_does_not_hang(engine: Engine) -> None:
    """Given a machine that sleeps for an hour during a step, no hang is reported."""
    engine.begin(1)
    assert engine.pass_time(1) is None
    assert engine.pass_time(3600, interval=3600) is None
    assert engine.pass_time(1) is None


def test_short_limits_are_observed_often_enough() -> None:
    assert StepWatch(0.16).interval == pytest.approx(0.01)
