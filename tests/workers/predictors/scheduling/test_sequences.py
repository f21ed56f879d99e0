"""Sequence batching on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.protocol import SequenceStep
from tests.support.predictors import engine_request, floats, infer
from tests.support.sequence_models import sequence_model
from workers.predictors.scheduling.batcher import Batcher
from workers.predictors.scheduling.direct import DirectBatcher
from workers.predictors.scheduling.job import Batch, Job
from workers.predictors.scheduling.oldest import OldestBatcher
from workers.predictors.tensors.inputs import InputReader

US = 1_000
IDLE_US = 1_000_000


class Bench:
    """A batcher; requests are named by their sequence and number, as in a0, a1."""

    def __init__(
        self, strategy: Any = "direct", *, instances: int = 1, max_batch_size: int = 2, **fields: Any
    ) -> None:
        spec = sequence_model(max_batch_size, strategy=strategy, **fields)
        make = OldestBatcher if strategy == "oldest" else DirectBatcher
        self.batcher: Batcher = make(spec, instances)
        self._reader = InputReader(spec)
        self._batched = max_batch_size > 0
        self._names: dict[Job, str] = {}
        self._counts: dict[str, int] = {}
        self._batches: list[Batch] = []

    def add(
        self,
        sequence: str,
        *,
        end: bool = False,
        start: bool | None = None,
        at_us: int = 0,
        tenant: str = "t",
        **shape: int,
    ) -> Job:
        number = self._counts.get(sequence, 0)
        step = SequenceStep(sequence, start=number == 0 if start is None else start, end=end)
        rows = [[0.0] * shape.get("width", 1)] * shape.get("size", 1)
        work = infer(floats(*rows) if self._batched else floats(*rows)[0], sequence=step)
        job = Job(engine_request(work, tenant=tenant), work, self._reader.check(work), print, at_us * US)
        self.batcher.add(job, at_us * US)
        self._counts[sequence] = number + 1
        self._names[job] = f"{sequence}{number}"
        return job

    def take(self, instance: int = 0, at_us: int = 0, *, finish: bool = True) -> str:
        """Return the rows of the next batch, joined by spaces; `-` for one that is not ready."""
        batch = self.batcher.take(instance, at_us * US)
        if batch is None:
            return ""
        if finish:
            self.batcher.finish(batch, at_us * US)
        else:
            self._batches.append(batch)
        return " ".join(self._names[row.job] if row.job else "-" for row in batch.rows)

    def finish(self, at_us: int = 0) -> None:
        self.batcher.finish(self._batches.pop(0), at_us * US)


def test_each_sequence_keeps_its_slot() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    assert bench.take() == "a0 b0"
    bench.add("b")
    assert bench.take() == "- b1"
    bench.add("a")
    bench.add("a")
    bench.add("b")
    assert [bench.take(), bench.take(), bench.take()] == ["a1 b2", "a2", ""]


def test_a_sequence_is_executed_in_order_and_never_twice_at_a_time() -> None:
    bench = Bench("oldest", max_batch_size=4)
    for _ in range(3):
        bench.add("a")
    assert bench.take(finish=False) == "a0"
    assert bench.take(finish=False) == ""
    bench.finish()
    assert [bench.take(), bench.take()] == ["a1", "a2"]


def test_sequences_beyond_the_slots_wait_for_an_end() -> None:
    bench = Bench()
    for sequence in "abcd":
        bench.add(sequence)
    bench.add("c", end=True)
    assert bench.take() == "a0 b0"
    assert bench.take() == ""
    bench.add("b", end=True)
    assert bench.take() == "- b1"
    assert [bench.take(), bench.take()] == ["- c0", "- c1"]
    assert bench.take() == "- d0"


def test_sequences_spread_over_the_instances() -> None:
    bench = Bench(instances=2)
    for sequence in "abc":
        bench.add(sequence)
    assert bench.take(0) == "a0 c0"
    assert bench.take(1) == "b0"
    bench.add("b")
    assert bench.take(0) == ""
    assert bench.take(1) == "b1"


def test_a_sequence_must_begin_with_its_start() -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest, match="sequence_start") as refused:
        bench.add("a", start=False)
    assert refused.value.param == "sequence_start"
    bench.add("a", start=True)
    with pytest.raises(InvalidRequest):
        bench.add("a", start=False, tenant="other")
    bench.add("a", end=True)
    with pytest.raises(InvalidRequest):
        bench.add("a", start=False)


def test_a_request_of_a_sequence_has_one_row() -> None:
    with pytest.raises(InvalidRequest, match="batch size of 1"):
        Bench().add("a", size=2)


def test_a_sequence_that_starts_again_keeps_its_slot() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    bench.add("a", start=True)
    assert [bench.take(), bench.take()] == ["a0 b0", "a1"]


def test_an_idle_sequence_loses_its_slot() -> None:
    bench = Bench(max_batch_size=1)
    bench.add("a")
    bench.add("b", at_us=10)
    assert bench.take(at_us=20) == "a0"
    assert bench.take(at_us=20) == ""
    assert bench.batcher.wake_at == (20 + IDLE_US) * US
    assert bench.take(at_us=19 + IDLE_US) == ""
    assert bench.take(at_us=20 + IDLE_US) == "b0"
    with pytest.raises(InvalidRequest, match="idle for too long"):
        bench.add("a", at_us=20 + IDLE_US)


def test_a_sequence_is_not_idle_while_a_request_waits_or_runs() -> None:
    bench = Bench(max_batch_size=1)
    bench.add("a")
    assert bench.take(at_us=2 * IDLE_US, finish=False) == "a0"
    assert bench.take(at_us=4 * IDLE_US) == ""
    bench.add("a", at_us=5 * IDLE_US)
    bench.finish(at_us=5 * IDLE_US)
    assert bench.take(at_us=5 * IDLE_US) == "a1"


def test_slots_with_other_shapes_wait_for_the_next_batch() -> None:
    bench = Bench(max_batch_size=3)
    bench.add("a", width=1)
    bench.add("b", width=2, at_us=1)
    bench.add("c", width=1, at_us=2)
    assert [bench.take(), bench.take()] == ["a0 - c0", "- b0"]


def test_a_batch_waits_for_its_share_of_the_slots() -> None:
    bench = Bench(max_batch_size=4, minimum_slot_utilization=0.5, max_queue_delay_microseconds=100)
    bench.add("a", at_us=10)
    assert bench.take(at_us=109) == ""
    assert bench.batcher.wake_at == 110 * US
    bench.add("b", at_us=109)
    assert bench.take(at_us=109) == "a0 b0"
    bench.add("b", at_us=120)
    assert bench.take(at_us=219) == ""
    assert bench.take(at_us=220) == "- b1"


def test_without_a_share_the_delay_does_not_count() -> None:
    bench = Bench(max_queue_delay_microseconds=100)
    bench.add("a")
    assert bench.take() == "a0"


def test_the_oldest_requests_of_the_candidates_form_batches() -> None:
    bench = Bench("oldest", max_batch_size=2, max_candidate_sequences=3)
    for number, sequence in enumerate("abcd"):
        bench.add(sequence, at_us=number)
    bench.add("a", end=True, at_us=9)
    assert bench.take(at_us=9) == "a0 b0"
    assert bench.take(at_us=9) == "c0 a1"
    assert bench.take(at_us=9) == "d0"


def test_the_oldest_strategy_prefers_sizes_and_delays() -> None:
    bench = Bench("oldest", max_batch_size=4, preferred_batch_size=(2,), max_queue_delay_microseconds=100)
    bench.add("a")
    assert bench.take(at_us=99) == ""
    assert bench.batcher.wake_at == 100 * US
    bench.add("b", at_us=99)
    assert bench.take(at_us=99) == "a0 b0"
    bench.add("a", at_us=99)
    assert bench.take(at_us=199) == "a1"


def test_a_model_without_batching_executes_one_sequence_at_a_time() -> None:
    bench = Bench(max_batch_size=0)
    bench.add("a")
    bench.add("b")
    assert [bench.take(), bench.take()] == ["a0", ""]


def test_a_removed_request_frees_a_place_that_is_needed_no_longer() -> None:
    bench = Bench(max_batch_size=1)
    first = bench.add("a", end=True)
    second = bench.add("b", end=True)
    bench.add("c")
    assert bench.batcher.remove(second)
    assert bench.batcher.remove(first)
    assert not bench.batcher.remove(first)
    assert bench.take() == "c0"


def test_a_batcher_is_drained_when_its_sequences_have_ended() -> None:
    bench = Bench()
    bench.add("a")
    bench.take()
    assert not bench.batcher.drained
    assert bench.batcher.knows(("t", "a"))
    bench.add("a", end=True)
    assert not bench.batcher.drained
    bench.take()
    assert bench.batcher.drained
    bench.add("b", start=True)
    bench.take()
    bench.batcher.forget()
    assert bench.batcher.drained


@pytest.mark.parametrize("positional", [True, False])
def test_a_request_of_a_batch_alone_keeps_its_slot(positional: bool) -> None:
    bench = Bench("direct" if positional else "oldest", max_batch_size=3)
    jobs = [bench.add(sequence) for sequence in "abc"]
    batch = bench.batcher.take(0, 0)
    assert batch is not None
    alone = batch.alone(jobs[1])
    assert [row.job for row in alone.rows] == ([None, jobs[1]] if positional else [jobs[1]])
    assert alone.jobs == (jobs[1],)
