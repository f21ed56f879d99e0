"""CPU time of an engine: its thread and the child processes count, other threads do not."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.waiting import LIMIT_S
from workers.health.cpu_time import engine_cpu_time

CHILD_WITH_CHILD_THAT_COMPUTES = "sh -c 'while :; do :; done'; true"
WORK_S = 0.05


class Computer:
    """Thread that computes on demand."""

    def __init__(self) -> None:
        self.computing = threading.Event()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopped.is_set():
            if self.computing.wait(LIMIT_S):
                sum(range(1000))


@pytest.fixture
def computer() -> Iterator[Computer]:
    made = Computer()
    yield made
    made.stopped.set()
    made.computing.set()
    made.thread.join()


def wait_for_work(cpu_time: Callable[[], float]) -> None:
    """Wait until the clock has advanced."""
    begun, deadline = cpu_time(), time.monotonic() + LIMIT_S
    while cpu_time() < begun + WORK_S:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_thread_counts_and_others_do_not(computer: Computer) -> None:
    assert computer.thread.ident is not None
    cpu_time = engine_cpu_time(computer.thread.ident)
    begun, own = cpu_time(), time.thread_time()
    while time.thread_time() < own + WORK_S:
        sum(range(1000))
    assert cpu_time() - begun < WORK_S / 2  # a child, such as the tests' Redis server, counts in ticks of 10 ms
    computer.computing.set()
    wait_for_work(cpu_time)


def test_descendants_count(computer: Computer) -> None:
    """Given a child whose own child computes, as a compiler's driver does."""
    assert computer.thread.ident is not None
    cpu_time = engine_cpu_time(computer.thread.ident)
    with subprocess.Popen(["sh", "-c", CHILD_WITH_CHILD_THAT_COMPUTES], start_new_session=True) as child:
        try:
            wait_for_work(cpu_time)
        finally:
            os.killpg(child.pid, signal.SIGKILL)


def test_an_ended_thread_has_no_time(computer: Computer) -> None:
    assert computer.thread.ident is not None
    cpu_time = engine_cpu_time(computer.thread.ident)
    computer.stopped.set()
    computer.computing.set()
    computer.thread.join()
    assert cpu_time() < LIMIT_S
