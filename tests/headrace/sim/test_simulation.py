"""The simulation: conservation, Little's law, determinism, and times that can be computed by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from headrace.sim.arrivals import DAY_S, Arrival, Day, Lengths, stationary
from headrace.sim.autoscaler import SYNC_S, Autoscaler, Fixed, Observation
from headrace.sim.comparison import POLICIES, Targets
from headrace.sim.simulation import Machine, Simulation
from headrace.sim.step_times import SMOLLM2, StepTimes

SECOND_STEPS = Machine(StepTimes({1: 1.0, 2: 1.0}, prompt_token_s=0.0), seats=2, cold_start_s=30.0)


class Alternating:
    """Removes and adds workers at every sync."""

    initial = 3

    def decide(self, seen: Observation) -> int:
        return 1 if seen.replicas > 1 else 3

    def wake(self, seen: Observation) -> int:
        return 1


def small_day(seed: int = 0) -> list[Arrival]:
    return list(Day(requests=1_500, bursts=2, burst_factor=20.0).arrivals(seed))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends(policy: str) -> None:
    load = small_day()
    found = Simulation(load, Machine(SMOLLM2), Targets(most=4).autoscaler(policy)).run()
    assert found.arrived == len(load) == len(found.totals)
    assert all(0 <= wait < first <= total for wait, first, total in zip(
        found.waits, found.first_tokens, found.totals, strict=True
    ))  # fmt: skip


def test_answers_of_removed_workers_end_elsewhere() -> None:
    load = list(stationary(2.0, 600.0, seed=1))
    found = Simulation(load, Machine(SMOLLM2, seats=8, cold_start_s=1.0), Alternating()).run()
    assert found.handed_over > 0
    assert len(found.totals) == len(load)


def test_a_request_takes_its_prompt_and_its_steps() -> None:
    machine = Machine(StepTimes({1: 1.0}, prompt_token_s=0.5), seats=1)
    found = Simulation([Arrival(10.0, 4, 3), Arrival(11.0, 2, 1)], machine, Fixed(1)).run()
    assert found.waits == pytest.approx([0.0, 4.0])
    assert found.first_tokens == pytest.approx([3.0, 4.0 + 2.0])
    assert found.totals == pytest.approx([5.0, 6.0])


def test_a_new_answer_begins_with_the_next_step() -> None:
    found = Simulation([Arrival(0.0, 1, 4), Arrival(1.5, 1, 1)], SECOND_STEPS, Fixed(1)).run()
    assert sorted(found.totals) == pytest.approx([1.5, 4.0])  # the second one ends at 3.0


def test_handed_over_tokens_are_computed_once() -> None:
    """Given an answer of 20 steps whose worker is removed, if it continues at once, it takes 20 steps."""

    class Moving(Alternating):
        initial = 2

        def decide(self, seen: Observation) -> int:
            return 1

    load = [Arrival(0.0, 1, 20), Arrival(0.0, 1, 20)]
    found = Simulation(load, SECOND_STEPS, Moving()).run()
    assert found.handed_over == 1
    assert found.totals == pytest.approx([20.0, 20.0])
    assert found.worker_seconds == pytest.approx(SYNC_S + 20.0)


def test_littles_law_on_a_stationary_load() -> None:
    """Given a queue near its capacity, the mean number that wait is the arrival rate times the mean wait."""
    rate, seconds = 1.2, 40_000.0
    load = list(stationary(rate, seconds, seed=3))
    found = Simulation(load, Machine(SMOLLM2, seats=2), Fixed(1)).run()
    samples = [sample.waiting for sample in found.samples if sample.at <= seconds]
    mean_wait = sum(found.waits) / len(found.waits)
    assert mean_wait > 0.2
    assert sum(samples) / len(samples) == pytest.approx(len(load) / seconds * mean_wait, rel=0.15)


def test_the_same_seed_gives_the_same_outcome() -> None:
    def outcome(seed: int, autoscaler: Autoscaler) -> object:
        return Simulation(small_day(seed), Machine(SMOLLM2), autoscaler).run().summary(5.0)

    targets = Targets()
    assert outcome(1, targets.hpa_both()) == outcome(1, targets.hpa_both())
    assert outcome(1, targets.hpa_both()) != outcome(2, targets.hpa_both())


def test_a_day_has_its_peak_and_its_bursts() -> None:
    calm = list(Day(requests=50_000, bursts=0).arrivals(0))
    assert len(calm) == pytest.approx(50_000, rel=0.02)
    by_hour = [0] * 24
    for arrival in calm:
        by_hour[int(arrival.at // 3600)] += 1
    assert by_hour[13] + by_hour[14] > 6 * (by_hour[1] + by_hour[2])
    assert all(a.at <= b.at for a, b in pairwise(calm))
    assert calm[-1].at < DAY_S
    lengths = Lengths()
    assert {lengths.prompt[0] <= a.prompt_tokens <= lengths.prompt[1] for a in calm} == {True}
    assert {1 <= a.answer_tokens <= lengths.answer_max for a in calm} == {True}
    assert len(list(Day(requests=50_000, bursts=8).arrivals(0))) > len(calm)


def test_an_idle_model_wakes_at_its_first_request() -> None:
    found = Simulation([Arrival(1000.0, 1, 1)], SECOND_STEPS, Targets().autoscaler("keda")).run()
    assert found.waits == pytest.approx([30.0])
    assert found.worker_seconds == pytest.approx(31.0)
