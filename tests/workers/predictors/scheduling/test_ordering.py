"""Delivery in the order of arrival."""

from __future__ import annotations

from tests.support.predictors import engine_request, floats, infer
from workers.engine.interface import EngineOutput
from workers.predictors.scheduling.job import Job
from workers.predictors.scheduling.ordering import OrderedDelivery
from workers.predictors.tensors.inputs import CheckedInputs


class Bench:
    def __init__(self, count: int) -> None:
        self.delivered: list[tuple[int, bool]] = []
        self.ordered = OrderedDelivery(self._deliver)
        work = infer(floats([0]))
        self.jobs = [Job(engine_request(work), work, CheckedInputs(1, ()), print, 0) for _ in range(count)]
        for job in self.jobs:
            self.ordered.expect(job)

    def _deliver(self, job: Job, output: EngineOutput) -> None:
        self.delivered.append((self.jobs.index(job), output.finished))
        if len(self.delivered) == 1:  # as another thread does meanwhile: it must not overtake
            self.put(2)

    def put(self, number: int, *, finished: bool = True) -> None:
        job = self.jobs[number]
        self.ordered.put(job, EngineOutput(job.id, finished=finished))


def test_outputs_wait_for_those_of_earlier_requests() -> None:
    bench = Bench(3)
    bench.put(1)
    assert bench.delivered == []
    bench.put(0, finished=False)
    assert bench.delivered == [(0, False)]
    bench.put(0)
    assert bench.delivered == [(0, False), (0, True), (1, True), (2, True)]


def test_a_dropped_request_holds_nothing_up() -> None:
    bench = Bench(3)
    bench.put(1)
    bench.ordered.forget(bench.jobs[0])
    bench.ordered.flush()
    bench.put(0)
    assert bench.delivered == [(1, True), (2, True)]
