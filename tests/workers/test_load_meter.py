"""Speed and time to the first token, as heartbeats carry them."""

from __future__ import annotations

import pytest

from shared.protocol import PriorityClass
from shared.queue.interface import Claim, Delivery
from shared.token_log.interface import Append, Lease
from shared.validation.token_estimate import token_estimate
from tests.support.fakes import MODEL, make_request, token_event
from workers.active_request import ActiveRequest
from workers.load_meter import FIRST_TOKEN_SHARE, SPEED_KEPT, LoadMeter, tokens_in_flight


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> LoadMeter:
    return LoadMeter(clock)


def begun(clock: Clock) -> ActiveRequest:
    request = make_request(max_tokens=100)
    claim = Claim(request.id, MODEL, PriorityClass.STANDARD, "1-0")
    return ActiveRequest(Delivery(request, claim, 1), Lease(request.id, "a", 1, 0.0), held_since=clock.now)


def record(meter: LoadMeter, active: ActiveRequest, tokens: int) -> None:
    meter.record(active, Append(active.lease, token_event(active.next_seq, *"x" * tokens), 5))
    active.next_seq += tokens


def test_time_without_work_does_not_count(meter: LoadMeter, clock: Clock) -> None:
    active = begun(clock)
    for _ in range(2):
        meter.set_working(True)
        clock.now += 1
        record(meter, active, 50)
        meter.set_working(False)
        clock.now += 60
    assert meter.tokens_per_s() == pytest.approx(50)
    clock.now += 60
    assert meter.tokens_per_s() == pytest.approx(50)


def test_the_speed_is_the_highest_of_recent_windows(meter: LoadMeter, clock: Clock) -> None:
    active = begun(clock)
    meter.set_working(True)
    for tokens, expected in ((80, 80), (10, 80 * SPEED_KEPT), (90, 90)):
        clock.now += 1
        record(meter, active, tokens)
        assert meter.tokens_per_s() == pytest.approx(expected)


def test_a_short_window_is_added_to_the_next(meter: LoadMeter, clock: Clock) -> None:
    active = begun(clock)
    meter.set_working(True)
    clock.now += 0.01
    record(meter, active, 50)
    assert meter.tokens_per_s() == 0
    clock.now += 0.99
    assert meter.tokens_per_s() == pytest.approx(50)


def test_only_the_first_token_of_a_run_counts(meter: LoadMeter, clock: Clock) -> None:
    active = begun(clock)
    assert meter.first_token_s is None
    clock.now += 2
    record(meter, active, 1)
    clock.now += 5
    record(meter, active, 3)
    assert meter.first_token_s == pytest.approx(2)
    active = begun(clock)
    clock.now += 1
    record(meter, active, 1)
    assert meter.first_token_s == pytest.approx(2 - FIRST_TOKEN_SHARE)


def test_tokens_in_flight_fall_as_tokens_are_generated(meter: LoadMeter, clock: Clock) -> None:
    active, other = begun(clock), begun(clock)
    cost = token_estimate(active.delivery.request)
    record(meter, active, 40)
    assert tokens_in_flight([active, other]) == 2 * cost - 40
    assert tokens_in_flight([]) == 0
