"""The HPA's formula and behaviour, and KEDA's switch."""

from __future__ import annotations

import pytest

from headrace.sim.autoscaler import SYNC_S, Observation
from headrace.sim.hpa import AverageQueue, Hpa, Utilization
from headrace.sim.keda import Keda


def seen(
    replicas: int, *, at: float = 0.0, utilization: list[float] | None = None, waiting: int = 0, held: int = 0
) -> Observation:
    return Observation(at, replicas, utilization or [], waiting, held)


@pytest.mark.parametrize(
    ("replicas", "utilization", "wanted"),
    [
        (4, [80.0] * 4, 4),
        (4, [87.0] * 4, 4),  # within the tolerance of 0.1
        (4, [89.0] * 4, 5),
        (4, [72.0] * 4, 4),
        (4, [71.0] * 4, 4),  # outside of the tolerance, rounded up
        (4, [50.0] * 4, 3),
        (4, [100.0, 100.0], 4),  # two are starting and count as 0: below the target now, so nothing changes
        (3, [100.0, 100.0], 3),
        (4, [10.0, 10.0], 3),  # two are starting and count as at the target
        (2, [], 2),
    ],
)
def test_utilization_follows_the_formula(replicas: int, utilization: list[float], wanted: int) -> None:
    assert Utilization(80.0).replicas(seen(replicas, utilization=utilization)) == wanted


@pytest.mark.parametrize(("waiting", "wanted"), [(0, 0), (10, 1), (21, 2), (23, 3), (95, 10)])
def test_queue_length_is_divided_by_its_target(waiting: int, wanted: int) -> None:
    assert AverageQueue(10.0).replicas(seen(2, waiting=waiting)) == wanted


def test_held_requests_count_where_asked() -> None:
    assert AverageQueue(10.0, held=True).replicas(seen(1, waiting=5, held=30)) == 4


def test_the_highest_metric_wins() -> None:
    hpa = Hpa([Utilization(), AverageQueue()], delay=0)
    assert hpa.decide(seen(2, utilization=[30.0, 30.0], waiting=55)) == 6
    assert Hpa([Utilization(), AverageQueue()], delay=0).decide(seen(2, utilization=[100.0] * 2)) == 3


def test_scaling_up_is_limited_to_four_or_double() -> None:
    hpa = Hpa([AverageQueue()], most=100, delay=0)
    assert hpa.decide(seen(2, waiting=1000)) == 6
    assert hpa.decide(seen(6, at=SYNC_S, waiting=1000)) == 12
    assert hpa.decide(seen(12, at=SYNC_S + 5, waiting=1000)) == 12  # the period's share is used up


def test_scaling_down_waits_for_the_highest_of_five_minutes() -> None:
    hpa = Hpa([AverageQueue()], delay=0)
    assert hpa.decide(seen(5, at=0.0, waiting=50)) == 5
    assert hpa.decide(seen(5, at=285.0)) == 5
    assert hpa.decide(seen(5, at=300.0)) == 5
    assert hpa.decide(seen(5, at=315.0)) == 2


def test_values_are_as_old_as_the_pipeline() -> None:
    hpa = Hpa([AverageQueue()], delay=1)
    assert hpa.decide(seen(2, at=0.0, waiting=50)) == 2
    assert hpa.decide(seen(2, at=SYNC_S)) == 5


def test_bounds_hold() -> None:
    assert Hpa([AverageQueue()], least=2, most=10, delay=0).decide(seen(9, waiting=5000)) == 10


def test_keda_removes_the_last_worker_after_the_cooldown() -> None:
    keda = Keda(target=10.0, cooldown_s=300.0)
    assert keda.initial == 0
    assert keda.wake(seen(0, at=0.0, waiting=1)) == 1
    decided = [keda.decide(seen(1, at=at * SYNC_S)) for at in range(1, 30)]
    assert decided.index(0) == 300 / SYNC_S - 1
    assert keda.decide(seen(0, at=600.0)) == 0


def test_keda_keeps_a_worker_that_computes() -> None:
    keda = Keda(target=10.0)
    assert {keda.decide(seen(1, at=at * SYNC_S, held=1)) for at in range(1, 60)} == {1}
    assert keda.decide(seen(1, at=60 * SYNC_S, held=10, waiting=15)) == 3
