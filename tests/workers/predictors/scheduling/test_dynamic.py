"""Dynamic batching on a clock of the test's own."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from shared.errors import QueueFull, QueueTimeout
from shared.protocol import PriorityClass
from shared.repository.spec import DynamicBatching, QueuePolicy
from tests.support.predictors import engine_request, floats, infer, model
from workers.predictors.scheduling.dynamic import DynamicBatcher
from workers.predictors.scheduling.job import Batch, Job
from workers.predictors.tensors.inputs import InputReader

US = 1_000


class Bench:
    """A batcher, with requests that have names."""

    def __init__(self, max_batch_size: int = 8, **batching: Any) -> None:
        spec = model(max_batch_size=max_batch_size, dynamic_batching=DynamicBatching(**batching))
        self._reader = InputReader(spec)
        self.batcher = DynamicBatcher(spec)
        self.names: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        self._numbers = count()

    def add(
        self,
        name: str = "",
        *,
        at_us: int = 0,
        size: int = 1,
        width: int = 1,
        priority: PriorityClass = PriorityClass.STANDARD,
        **fields: Any,
    ) -> Job:
        work = infer(floats(*[[0.0] * width] * size), **fields)
        job = Job(engine_request(work, priority=priority), work, self._reader.check(work), print, at_us * US)
        self.batcher.add(job, at_us * US)
        self.names[job.id] = name or f"{next(self._numbers)}"
        self.jobs[self.names[job.id]] = job
        return job

    def take(self, at_us: int = 0) -> str:
        """Return the names of the next batch, joined by spaces."""
        batch = self.batcher.take(0, at_us * US)
        return self.named(batch) if batch else ""

    def named(self, batch: Batch) -> str:
        return " ".join(self.names[job.id] for job in batch.jobs)

    def expired(self, at_us: int) -> list[str]:
        found = self.batcher.expire(at_us * US)
        assert all(isinstance(error, QueueTimeout) for _, error in found)
        return [self.names[job.id] for job, _ in found]


def test_waiting_requests_are_joined_up_to_the_largest_size() -> None:
    bench = Bench(4)
    for _ in range(5):
        bench.add()
    assert [bench.take(), bench.take(), bench.take()] == ["0 1 2 3", "4", ""]


def test_a_request_that_does_not_fit_begins_the_next_batch() -> None:
    bench = Bench(4)
    for size in (2, 1, 2, 1):
        bench.add(size=size)
    assert [bench.take(), bench.take()] == ["0 1", "2 3"]


def test_without_dynamic_batching_requests_stay_alone() -> None:
    bench = Bench()
    bench.batcher = DynamicBatcher(model())
    bench.add()
    bench.add()
    assert [bench.take(), bench.take(), bench.take()] == ["0", "1", ""]


def test_only_equal_shapes_and_parameters_are_joined() -> None:
    bench = Bench()
    bench.add("a", width=2)
    bench.add("b", width=3)
    bench.add("c", width=2)
    bench.add("d", width=3, parameters={"mode": 1})
    bench.add("e", width=3)
    assert [bench.take(), bench.take(), bench.take()] == ["a c", "b e", "d"]


@pytest.mark.parametrize(
    ("sizes", "first"),
    [
        ([1] * 7, "0 1 2 3 4 5"),  # 6, not 4
        ([1] * 5, "0 1 2 3"),
        ([1] * 3, "0 1 2"),  # no preferred size: all
        ([1] * 9, "0 1 2 3 4 5"),
        ([5, 3], "0"),  # more than the largest preferred size: cut before it
        ([3, 1, 1], "0 1"),
    ],
)
def test_preferred_sizes_are_formed_if_they_can(sizes: list[int], first: str) -> None:
    bench = Bench(preferred_batch_size=(4, 6))
    for size in sizes:
        bench.add(size=size)
    assert bench.take() == first


def test_a_batch_waits_for_others_until_the_delay_is_over() -> None:
    bench = Bench(4, max_queue_delay_microseconds=100)
    bench.add(at_us=10)
    bench.add(at_us=50)
    assert bench.take(at_us=109) == ""
    assert bench.batcher.wake_at == 110 * US
    assert bench.take(at_us=110) == "0 1"
    assert bench.take(at_us=111) == ""
    assert bench.batcher.wake_at is None


def test_a_full_batch_does_not_wait() -> None:
    bench = Bench(3, max_queue_delay_microseconds=1_000)
    bench.add(size=2)
    assert bench.take() == ""
    bench.add(size=2)
    assert bench.take() == "0"
    assert bench.take() == ""
    bench.add()
    assert bench.take() == "1 2"


def test_a_preferred_size_ends_the_wait() -> None:
    bench = Bench(8, preferred_batch_size=(2, 4), max_queue_delay_microseconds=100)
    bench.add()
    assert bench.take(at_us=50) == ""
    bench.add(at_us=60)
    assert bench.take(at_us=60) == "0 1"
    for _ in range(3):
        bench.add(at_us=70)
    assert bench.take(at_us=200) == "2 3 4"  # overdue: all, as Triton does


def test_a_shape_does_not_wait_for_the_delay_of_another() -> None:
    bench = Bench(2, max_queue_delay_microseconds=100)
    bench.add("a", width=1)
    bench.add("b", width=2)
    bench.add("c", width=2)
    assert bench.take() == "b c"
    assert bench.take() == ""


def test_classes_go_before_levels_and_levels_before_arrival() -> None:
    bench = Bench(1, priority_levels=3, default_priority_level=2)
    bench.add("batch", priority=PriorityClass.BATCH, level=1)
    bench.add("low", level=3)
    bench.add("default")
    bench.add("out of range", level=9)
    bench.add("high", level=1)
    bench.add("interactive", priority=PriorityClass.INTERACTIVE, level=3)
    taken = [bench.take() for _ in range(6)]
    assert taken == ["interactive", "high", "default", "out of range", "low", "batch"]


def test_a_full_level_refuses_requests() -> None:
    small = QueuePolicy(max_queue_size=2)
    bench = Bench(priority_levels=2, default_priority_level=2, priority_queue_policy={1: small})
    bench.add(level=1)
    bench.add(level=1, priority=PriorityClass.BATCH)
    with pytest.raises(QueueFull, match="at most 2"):
        bench.add(level=1)
    bench.add(level=2)
    assert len(bench.batcher) == 3
    bench.take()
    bench.add(level=1)


def test_a_timeout_refuses_requests() -> None:
    bench = Bench(default_queue_policy=QueuePolicy(default_timeout_microseconds=100))
    assert bench.batcher.expires
    bench.add("a")
    bench.add("b", at_us=50, timeout_us=1)  # the model does not allow another one
    assert bench.batcher.next_expiry() == 100 * US
    assert bench.expired(99) == []
    assert bench.expired(100) == ["a"]
    assert bench.take(120) == "b"
    assert bench.expired(1_000) == []


@pytest.mark.parametrize(
    ("default", "wanted", "expires"), [(100, 40, 40), (100, 400, 100), (0, 40, 40), (100, 0, 100)]
)
def test_a_request_may_shorten_its_timeout_if_allowed(default: int, wanted: int, expires: int) -> None:
    policy = QueuePolicy(default_timeout_microseconds=default, allow_timeout_override=True)
    bench = Bench(default_queue_policy=policy)
    bench.add(timeout_us=wanted)
    assert bench.batcher.next_expiry() == expires * US


def test_delayed_requests_go_after_those_in_time() -> None:
    policy = QueuePolicy(timeout_action="DELAY", default_timeout_microseconds=100)
    bench = Bench(1, default_queue_policy=policy, priority_levels=2, default_priority_level=1)
    bench.add("late")
    bench.add("low", level=2, at_us=90)
    bench.add("in time", at_us=90)
    assert bench.expired(100) == []
    assert [bench.take(100), bench.take(100), bench.take(100)] == ["in time", "late", "low"]


def test_a_removed_request_is_gone() -> None:
    bench = Bench()
    job = bench.add()
    assert bench.batcher.remove(job)
    assert not bench.batcher.remove(job)
    assert (bench.take(), len(bench.batcher)) == ("", 0)
