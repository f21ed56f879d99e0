"""The supervisor, with children of one line each."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.supervisor import MOST_DEATHS, Child, ChildFailed, Supervisor

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


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def test_a_dead_child_is_started_again_and_told_of(supervisor: Supervisor, tmp_path: Path) -> None:
    worker = child("worker", LIVE, tmp_path)
    supervisor.add(worker)
    assert worker.process is not None
    first = worker.process.pid
    os.kill(first, signal.SIGKILL)
    worker.process.wait()

    def again() -> bool:
        supervisor.check()
        return worker.running

    until(again)
    assert worker.process.pid != first
    assert "worker died (status -9)" in supervisor.reports[0]  # type: ignore[attr-defined]


def test_a_child_that_will_not_live_is_given_up_with_its_last_words(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.supervisor.BACKOFF", (0.0,) * (MOST_DEATHS - 1))
    supervisor.add(child("api", "import sys; sys.exit('no such thing')", tmp_path))
    with pytest.raises(ChildFailed, match=r"api died 6 times in a row \(status 1\): no such thing"):
        until(lambda: supervisor.check() is not None)


def test_stopping_ends_the_willing_and_kills_the_rest(supervisor: Supervisor, tmp_path: Path) -> None:
    willing, deaf = child("willing", LIVE, tmp_path), child("deaf", DEAF, tmp_path)
    for one in (willing, deaf):
        supervisor.add(one)
        until(lambda one=one: one.last_words() == "up")
    supervisor.stop(0.3)
    assert willing.process is not None
    assert deaf.process is not None
    assert (willing.process.returncode, deaf.process.returncode) == (0, -signal.SIGKILL)


def test_a_second_signal_hurries(supervisor: Supervisor, tmp_path: Path) -> None:
    deaf = child("deaf", DEAF, tmp_path)
    supervisor.add(deaf)
    until(lambda: deaf.last_words() == "up")
    begin = time.monotonic()
    supervisor.stop(60, hurry=lambda: True)
    assert time.monotonic() - begin < 30


def test_settings_travel_in_the_environment_and_output_goes_to_the_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    one = child("one", "import os; print(os.environ['MARK'])", tmp_path)
    supervisor.add(one)
    until(lambda: one.last_words() == "one")
