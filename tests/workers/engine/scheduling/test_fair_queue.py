"""Waiting tenants are served in proportion to their weights, and pay for prompts and answers."""

from __future__ import annotations

import pytest

from tests.support.scheduler_driver import STANDARD, compute, make_scheduler, make_sequence, step
from workers.engine.sequence import Sequence


def test_least_served_tenant_goes_first() -> None:
    """Given one tenant with many prompts and one with two, they alternate; each tenant's go by arrival."""
    scheduler = make_scheduler(budget=10, seats=1)
    for order in range(4):
        scheduler.add(make_sequence(order, 10, tenant="many"))
    for order in (4, 5):
        scheduler.add(make_sequence(order, 10, tenant="few"))
    started = []
    for _ in range(6):
        started += step(scheduler)
        scheduler.remove(list(scheduler.running))
    assert started == [0, 4, 1, 5, 2, 3]


def test_the_earliest_due_goes_first_within_a_tenant() -> None:
    """Given targets for the first token: they reorder their tenant's prompts, and no other's."""
    scheduler = make_scheduler(budget=10, seats=1)
    for order, due in enumerate((30.0, 31.0, 5.0, 32.0, 5.0)):
        sequence = make_sequence(order, 10, tenant="targets")
        sequence.due = due
        scheduler.add(sequence)
    other = make_sequence(5, 10, tenant="other")
    other.due = 99.0
    scheduler.add(other)
    started = []
    for _ in range(6):
        started += step(scheduler)
        scheduler.remove(list(scheduler.running))
    assert [order for order in started if order != 5] == [2, 4, 0, 1, 3]
    assert started.index(5) <= 1


def test_tenants_are_served_by_weight() -> None:
    scheduler = make_scheduler(blocks=1000, budget=12, heavy=3.0)
    for order in range(80):
        scheduler.add(make_sequence(order, 240, tenant="heavy" if order % 2 else "light"))
    done: list[Sequence] = []
    while len(done) < 40:
        compute(scheduler)
        ended = [sequence for sequence in scheduler.running if sequence.num_output_tokens]
        scheduler.remove(ended)
        done += ended
    assert sum(sequence.tenant == "heavy" for sequence in done) in (29, 30, 31)


def test_idle_tenant_saves_nothing_up() -> None:
    """Given a tenant that was served much while another was idle, they share equally from then on."""
    scheduler = make_scheduler(budget=10, seats=1)
    for order in range(8):
        scheduler.add(make_sequence(order, 10, tenant="early"))
    for _ in range(6):
        step(scheduler)
        scheduler.remove(list(scheduler.running))
    for order in range(8, 12):
        scheduler.add(make_sequence(order, 10, tenant="late"))
    started = []
    for _ in range(4):
        started += step(scheduler)
        scheduler.remove(list(scheduler.running))
    assert sorted(started) == [6, 7, 8, 9]


def test_idle_tenants_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.scheduling.fair_queue.MAX_REMEMBERED_TENANTS", 10)
    scheduler = make_scheduler(budget=10)
    for order in range(200):
        scheduler.add(make_sequence(order, 10, tenant=f"tenant-{order}"))
        if order > 3:  # some sequences always wait
            step(scheduler)
            scheduler.remove(list(scheduler.running))
    queue = scheduler._waiting._classes[STANDARD]
    assert len(queue._served) < 30
    assert len(queue._heap) < 30


def start_order(*waiting: Sequence, steps: int = 1) -> list[int]:
    """Return the order in which sequences start on one seat, each leaving it after `steps` steps."""
    scheduler = make_scheduler(seats=1)
    for sequence in waiting:
        scheduler.add(sequence)
    started = []
    while scheduler.has_work():
        for _ in range(steps if not started else 1):
            last = step(scheduler)
        started += last
        scheduler.remove(list(scheduler.running))
    return started


def test_tenant_pays_for_its_prompts() -> None:
    """Given prompts of 10 and of 2 tokens and answers of one, four short ones run between two long ones."""
    shorts = [make_sequence(order, 2, tenant="short") for order in range(2, 8)]
    longs = [make_sequence(order, 10, tenant="long") for order in range(2)]
    assert start_order(*longs, *shorts) == [0, 2, 3, 4, 5, 1, 6, 7]


def test_tenant_pays_for_its_answers() -> None:
    """Given an answer of 10 tokens and then another tenant's prompt of 5, the other tenant is still the next."""
    talker = [make_sequence(order, 1, tenant="talker") for order in range(2)]
    other = [make_sequence(order, 5, tenant="other") for order in range(2, 4)]
    assert start_order(*talker, *other, steps=10) == [0, 2, 3, 1]
