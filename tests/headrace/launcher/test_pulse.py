"""Signs of life of children: silent ones are killed, on a clock that the test moves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.launcher.pulse import LONGEST_CHECK_S, Pulse
from headrace.launcher.supervisor import Child, Supervisor
from tests.support.moved_clock import MovedClock
from tests.support.waiting import LIMIT_S
from workers.health.notifier import Notifier

LIMIT = 4.0
SERVES_ONCE = """
import signal
from workers.health.notifier import Notifier
Notifier.from_environment().ready()
print("up", flush=True)
signal.pause()
"""


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def pulse(clock: MovedClock) -> Iterator[Pulse]:
    made = Pulse(LIMIT, clock=clock)
    yield made
    made.close()


@pytest.fixture
def notifier(pulse: Pulse) -> Notifier:
    return Notifier.from_environment(pulse.environment)


def silent_after(pulse: Pulse, clock: MovedClock, seconds: float) -> bool:
    """Check the pulse every tenth of a second, and return what the last check found."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 0.1
        found = pulse.is_silent()
    return found


def test_a_silent_process_is_noticed_within_five_seconds(
    pulse: Pulse, clock: MovedClock, notifier: Notifier
) -> None:
    notifier.ready()
    assert not silent_after(pulse, clock, LIMIT)
    notifier.alive()
    assert not silent_after(pulse, clock, LIMIT - 0.2)
    assert silent_after(pulse, clock, 0.5)


def test_a_process_that_starts_may_be_silent(pulse: Pulse, clock: MovedClock, notifier: Notifier) -> None:
    assert not silent_after(pulse, clock, 10 * LIMIT)
    notifier.alive()
    assert not silent_after(pulse, clock, 10 * LIMIT)


def test_a_process_that_ends_may_be_silent(pulse: Pulse, clock: MovedClock, notifier: Notifier) -> None:
    notifier.ready()
    notifier.stopping()
    assert not silent_after(pulse, clock, 10 * LIMIT)


def test_messages_of_the_last_process_do_not_count(pulse: Pulse, clock: MovedClock, notifier: Notifier) -> None:
    notifier.ready()
    pulse.restart()
    assert not silent_after(pulse, clock, 10 * LIMIT)


def test_a_suspended_launcher_does_not_count(pulse: Pulse, clock: MovedClock, notifier: Notifier) -> None:
    notifier.ready()
    pulse.is_silent()
    clock.now += 3600
    assert not pulse.is_silent()
    assert silent_after(pulse, clock, LIMIT - LONGEST_CHECK_S + 0.2)


def test_another_processes_supervisor_is_not_notified(pulse: Pulse, clock: MovedClock) -> None:
    other = pulse.environment | {"WATCHDOG_PID": str(os.getpid() + 1)}
    Notifier.from_environment(other).ready()
    Notifier.from_environment({}).ready()
    assert not silent_after(pulse, clock, 10 * LIMIT)
    Notifier.from_environment(pulse.environment | {"WATCHDOG_PID": str(os.getpid())}).ready()
    assert silent_after(pulse, clock, 2 * LIMIT)


def test_a_notifier_survives_its_supervisor(pulse: Pulse, notifier: Notifier) -> None:
    pulse.close()
    notifier.alive()


def test_a_supervisor_that_does_not_read_blocks_nobody(notifier: Notifier) -> None:
    for _ in range(2000):
        notifier.alive()


def test_a_silent_child_is_killed_and_restarted(pulse: Pulse, clock: MovedClock, tmp_path: Path) -> None:
    reports: list[str] = []
    supervisor = Supervisor(reports.append)
    command = [sys.executable, "-c", SERVES_ONCE]
    worker = Child("worker", command, {}, tmp_path / "worker.log", pulse)
    supervisor.add(worker)
    assert worker.process is not None
    first = worker.process.pid
    try:
        deadline = time.monotonic() + LIMIT_S
        while worker.process is None or worker.process.pid == first:
            assert time.monotonic() < deadline, reports
            supervisor.check()
            clock.now += 0.1 if worker.last_line() == "up" else 0
            time.sleep(0.01)
    finally:
        supervisor.stop(0)
    assert reports == [
        "worker does not respond, and is killed",
        "worker died (SIGKILL), restart in 0.2 s: up",
    ]
