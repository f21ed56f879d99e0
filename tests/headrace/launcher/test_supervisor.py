"""Supervisor, with children of one line of code each."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.launcher.server_keeper import ServerKeeper
from headrace.launcher.supervisor import (
    HEALTHY_AFTER_S,
    MAX_EARLY_DEATHS,
    MAX_LINE_CHARS,
    MAX_PAUSE_S,
    Backoff,
    Child,
    ChildFailed,
    Death,
    Supervisor,
)
from shared.errors import ConfigError, Unavailable
from tests.support.moved_clock import MovedClock
from tests.support.waiting import LIMIT_S

LIVE = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print('up', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    reports: list[str] = []
    made = Supervisor(reports.append)
    made.reports = reports  # type: ignore[attr-defined]
    yield made
    made.stop(0)


def child(name: str, code: str, folder: Path) -> Child:
    return Child(name, [sys.executable, "-c", code], {"MARK": name}, folder / f"{name}.log")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_dead_child_is_restarted_and_reported(supervisor: Supervisor, tmp_path: Path) -> None:
    worker = child("worker", LIVE, tmp_path)
    supervisor.add(worker)
    assert worker.process is not None
    first = worker.process.pid
    os.kill(first, signal.SIGKILL)
    worker.process.wait()

    def restarted() -> bool:
        supervisor.check()
        return worker.running

    wait_until(restarted)
    assert worker.process.pid != first
    assert "worker died (SIGKILL), restart in 0.2 s" in supervisor.reports[0]  # type: ignore[attr-defined]


def test_a_long_last_line_is_cut(tmp_path: Path) -> None:
    talker = child("worker", "", tmp_path)
    (tmp_path / "worker.log").write_text("x" * 5000)
    assert talker.last_line() == "x" * MAX_LINE_CHARS


def test_pauses_double_and_start_over_after_a_healthy_run() -> None:
    backoff, now = Backoff(), 1000.0
    pauses = [backoff.died(now, now + HEALTHY_AFTER_S - 1) for _ in range(10)]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, MAX_PAUSE_S, MAX_PAUSE_S]
    assert backoff.died(now, now + HEALTHY_AFTER_S) == 0.2
    assert backoff.due == now + HEALTHY_AFTER_S + 0.2


@pytest.fixture
def deaths() -> list[Death]:
    return []


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def timed_supervisor(clock: MovedClock, deaths: list[Death]) -> Iterator[Supervisor]:
    """Supervisor with the test's clock, which records each death."""
    made = Supervisor(lambda line: None, deaths.append, clock=clock)
    yield made
    made.stop(0)


def die_and_wait(supervisor: Supervisor, clock: MovedClock, process: Child) -> None:
    """Wait for the child to die, report it, and move the clock past its pause."""
    assert process.process is not None
    process.process.wait(20)
    supervisor.check()
    clock.now = process.backoff.due
    supervisor.check()


def test_after_settle_a_child_is_always_restarted(
    timed_supervisor: Supervisor, clock: MovedClock, deaths: list[Death], tmp_path: Path
) -> None:
    """Given a child that dies at once, expect growing pauses, and no restart before the pause is over."""
    worker = child("worker", "import sys; sys.exit(2)", tmp_path)
    timed_supervisor.add(worker)
    timed_supervisor.settle()
    for _ in range(MAX_EARLY_DEATHS + 1):
        die_and_wait(timed_supervisor, clock, worker)
    assert worker.process is not None
    worker.process.wait(20)
    timed_supervisor.check()
    clock.now = worker.backoff.due - 0.01
    timed_supervisor.check()
    assert not worker.running
    assert [death.pause for death in deaths] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert {death.status for death in deaths} == {2}


def test_repeated_early_deaths_raise_with_the_last_log_line(
    timed_supervisor: Supervisor, clock: MovedClock, tmp_path: Path
) -> None:
    api = child("api", "import sys; sys.exit('error: no such thing')", tmp_path)
    timed_supervisor.add(api)
    with pytest.raises(ChildFailed, match=r"api died 6 times in a row \(exit status 1\): no such thing"):
        for _ in range(MAX_EARLY_DEATHS):
            die_and_wait(timed_supervisor, clock, api)


def test_refused_settings_raise_at_once(timed_supervisor: Supervisor, clock: MovedClock, tmp_path: Path) -> None:
    code = "import sys; print('error: model x has no config.json\\nlogged later', flush=True); sys.exit(2)"
    worker = child("worker", code, tmp_path)
    timed_supervisor.add(worker)
    with pytest.raises(ConfigError, match=r"worker cannot start: model x has no config\.json"):
        die_and_wait(timed_supervisor, clock, worker)


def test_a_failed_start_is_retried(timed_supervisor: Supervisor, clock: MovedClock, tmp_path: Path) -> None:
    """Given a log folder that disappears and returns, expect the child to run again."""
    folder = tmp_path / "logs"
    worker = child("worker", LIVE, folder)
    timed_supervisor.add(worker)
    timed_supervisor.settle()
    wait_until(lambda: worker.last_line() == "up")
    folder.rename(tmp_path / "away")
    folder.write_text("")
    assert worker.process is not None
    worker.process.kill()
    die_and_wait(timed_supervisor, clock, worker)
    assert (worker.running, worker.backoff.deaths) == (False, 2)
    folder.unlink()
    clock.now = worker.backoff.due
    timed_supervisor.check()
    assert worker.running


class FailingServer:
    """Server whose next `failures` starts fail."""

    def __init__(self) -> None:
        self.pid: int | None = 1
        self.failures = 0

    def start(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("no space left")
        self.pid = 2


def test_a_server_that_fails_to_start_is_retried(clock: MovedClock) -> None:
    server, reports = FailingServer(), []
    keeper = ServerKeeper(server, reports.append, clock=clock)
    keeper.check()
    server.pid, server.failures = None, 2
    for _ in range(40):
        keeper.check()
        clock.now += 0.1
    assert server.pid == 2
    assert reports == [
        "the embedded Valkey died, restart in 0.2 s",
        "the embedded Valkey cannot be started (no space left), next attempt in 0.4 s",
        "the embedded Valkey cannot be started (no space left), next attempt in 0.8 s",
    ]


def test_stop_terminates_children_and_kills_those_left(supervisor: Supervisor, tmp_path: Path) -> None:
    willing, deaf = child("willing", LIVE, tmp_path), child("deaf", DEAF, tmp_path)
    for process in (willing, deaf):
        supervisor.add(process)
        wait_until(lambda process=process: process.last_line() == "up")
    assert willing.process is not None
    assert deaf.process is not None
    supervisor.stop(LIMIT_S, kill_now=lambda: not willing.running)
    assert (willing.process.returncode, deaf.process.returncode) == (0, -signal.SIGKILL)


def test_a_second_signal_kills_at_once(supervisor: Supervisor, tmp_path: Path) -> None:
    deaf = child("deaf", DEAF, tmp_path)
    supervisor.add(deaf)
    wait_until(lambda: deaf.last_line() == "up")
    supervisor.stop(100 * LIMIT_S, kill_now=lambda: True)
    assert not deaf.running


def test_environment_is_passed_and_output_is_logged(supervisor: Supervisor, tmp_path: Path) -> None:
    process = child("process", "import os; print(os.environ['MARK'])", tmp_path)
    supervisor.add(process)
    wait_until(lambda: process.last_line() == "process")
