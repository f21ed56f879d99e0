"""Speed and time to the first token, as heartbeats carry them."""

from __future__ import annotations

import pytest

from shared.protocol import PriorityClass
from shared.queue.interface import Claim, Delivery
from shared.token_log.interface import Append, Lease
from shared.validation.token_estimate import token_estimate
from tests.support.fakes import MODEL, make_request, token_event
from tests.support.moved_clock import MovedClock
from workers.active_request import ActiveRequest, AppendTally
from workers.load_meter import LAST_SHARE, LoadMeter, tokens_in_flight

SEATS = 8


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def meter() -> LoadMeter:
    return LoadMeter(SEATS)


def begun(clock: MovedClock, *, n: int = 1) -> ActiveRequest:
    request = make_request(max_tokens=100, n=n)
    claim = Claim(request.id, MODEL, PriorityClass.STANDARD, "1-0")
    return ActiveRequest(Delivery(request, claim, 1), Lease(request.id, "a", 1, 0.0), held_since=clock.now)


def record(meter: LoadMeter, clock: MovedClock, active: ActiveRequest, tokens: int) -> None:
    append = Append(active.lease, token_event(active.next_seq, *"x" * tokens), 5)
    meter.record(AppendTally.take([(active, append)], clock.now), clock.now)
    active.next_seq += tokens


def test_the_speed_does_not_depend_on_the_work_that_a_worker_gets(meter: LoadMeter, clock: MovedClock) -> None:
    """One sequence and eight, each with 10 tokens/s, and pauses between."""
    for count in (1, 8):
        runs = [begun(clock) for _ in range(count)]
        for active in runs:
            record(meter, clock, active, 1)
        for _ in range(5):
            clock.now += 1
            for active in runs:
                record(meter, clock, active, 10)
        assert meter.tokens_per_s() == pytest.approx(10 * SEATS)
        clock.now += 60
        assert meter.tokens_per_s() == pytest.approx(10 * SEATS)


def test_each_choice_is_a_sequence(meter: LoadMeter, clock: MovedClock) -> None:
    active = begun(clock, n=2)
    record(meter, clock, active, 2)
    clock.now += 1
    record(meter, clock, active, 20)
    assert meter.tokens_per_s() == pytest.approx(10 * SEATS)


def test_the_speed_is_a_moving_average(meter: LoadMeter, clock: MovedClock) -> None:
    active = begun(clock)
    record(meter, clock, active, 1)
    for tokens, expected in ((10, 10), (20, 10 + LAST_SHARE * 10)):
        clock.now += 1
        record(meter, clock, active, tokens)
        assert meter.tokens_per_s() == pytest.approx(expected * SEATS)


def test_a_short_window_is_added_to_the_next(meter: LoadMeter, clock: MovedClock) -> None:
    active = begun(clock)
    record(meter, clock, active, 1)
    assert meter.tokens_per_s() == 0
    clock.now += 0.01
    record(meter, clock, active, 50)
    assert meter.tokens_per_s() == 0
    clock.now += 0.99
    record(meter, clock, active, 50)
    assert meter.tokens_per_s() == pytest.approx(100 * SEATS)


def test_only_the_first_token_of_a_run_counts(meter: LoadMeter, clock: MovedClock) -> None:
    active = begun(clock)
    assert meter.first_token_s is None
    clock.now += 2
    record(meter, clock, active, 1)
    clock.now += 5
    record(meter, clock, active, 3)
    assert meter.first_token_s == pytest.approx(2)
    active = begun(clock)
    clock.now += 1
    record(meter, clock, active, 1)
    assert meter.first_token_s == pytest.approx(2 - LAST_SHARE)


def test_tokens_in_flight_fall_as_tokens_are_generated(meter: LoadMeter, clock: MovedClock) -> None:
    active, other = begun(clock), begun(clock)
    cost = token_estimate(active.delivery.request)
    record(meter, clock, active, 40)
    assert tokens_in_flight([active, other]) == 2 * cost - 40
    assert tokens_in_flight([]) == 0
