"""Decisions of the scheduler without a model: budgets, classes and preemption."""

from __future__ import annotations

import random

import pytest

from shared.protocol import PriorityClass
from tests.support.scheduler_driver import (
    BATCH,
    INTERACTIVE,
    STANDARD,
    compute,
    make_scheduler,
    make_sequence,
    step,
)
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.scheduling.batching_policies import FixedBatching
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.sequence import Sequence


def test_prompts_get_the_budget_that_answers_leave() -> None:
    scheduler = make_scheduler()
    for order, num_tokens in enumerate((5, 8, 40)):
        scheduler.add(make_sequence(order, num_tokens))
    assert step(scheduler) == {0: 5, 1: 8, 2: 3}
    assert step(scheduler) == {0: 1, 1: 1, 2: 14}
    assert step(scheduler) == {0: 1, 1: 1, 2: 14}
    assert step(scheduler) == {0: 1, 1: 1, 2: 9}
    assert step(scheduler) == {0: 1, 1: 1, 2: 1}


def test_older_prompt_does_not_take_a_younger_answers_row() -> None:
    """Given a choice resumed with many tokens and a younger one that lacks only its last token, both advance."""
    scheduler = make_scheduler()
    parent, long, short = make_sequence(0, 4), make_sequence(1, 4), make_sequence(2, 4)
    long.tokens += [0] * 60
    parent.forks = (long, short)
    scheduler.add(parent)
    assert step(scheduler) == {0: 4}
    assert step(scheduler) == {0: 1, 1: 14, 2: 1}


def test_budget_smaller_than_the_batch_serves_the_oldest() -> None:
    scheduler = make_scheduler(budget=2)
    for order in range(3):
        scheduler.add(make_sequence(order, 1))
    assert step(scheduler) == {0: 1, 1: 1}
    assert step(scheduler) == {0: 1, 1: 1}
    scheduler, parent = make_scheduler(budget=2), make_sequence(0, 1)
    parent.forks = (make_sequence(1, 1), make_sequence(2, 1))
    scheduler.add(parent)
    assert step(scheduler) == {0: 1}
    assert step(scheduler) == {0: 1, 1: 1}, "not a row for each of the three choices"


def test_youngest_is_preempted_and_resumes_first() -> None:
    """Given two sequences that outgrow the pool, the younger waits, ahead of a third, until the older ends."""
    scheduler = make_scheduler(blocks=5)
    first, second, third = (make_sequence(order, tokens) for order, tokens in ((0, 8), (1, 4), (2, 1)))
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert step(scheduler) == {0: 8, 1: 4}  # a block stays free for each that runs, so the third waits
    for _ in range(4):
        assert step(scheduler) == {0: 1, 1: 1}
    assert step(scheduler) == {0: 1}
    assert scheduler.num_preemptions == 1
    scheduler.remove([first])
    assert step(scheduler) == {1: 5, 2: 1}  # it has kept one of its two blocks


def test_more_urgent_class_goes_first() -> None:
    """Given a prompt of each class in any order, chunks go to the most urgent, even before a running one."""
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 40, BATCH))
    assert step(scheduler) == {0: 16}
    scheduler.add(make_sequence(1, 10, STANDARD))
    scheduler.add(make_sequence(2, 12, INTERACTIVE))
    assert step(scheduler) == {2: 12, 1: 4}
    assert step(scheduler) == {2: 1, 1: 6}
    assert step(scheduler) == {2: 1, 1: 1, 0: 14}


def test_urgent_prompt_keeps_batch_rows_out() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 4, BATCH))
    assert step(scheduler) == {0: 4}
    assert step(scheduler) == {0: 1}
    scheduler.add(make_sequence(1, 20, STANDARD))
    assert step(scheduler) == {1: 16}
    assert step(scheduler) == {1: 4}
    assert step(scheduler) == {1: 1, 0: 1}


@pytest.mark.parametrize("urgent", [INTERACTIVE, STANDARD])
def test_more_urgent_class_takes_a_seat_and_an_equal_one_waits(urgent: PriorityClass) -> None:
    """Given all seats taken by batch work, the youngest is preempted, keeps its blocks, and resumes afterwards."""
    scheduler = make_scheduler(seats=2)
    for order in range(3):
        scheduler.add(make_sequence(order, 6, BATCH))
    assert step(scheduler) == {0: 6, 1: 6}
    scheduler.add(make_sequence(3, 5, urgent))
    assert step(scheduler) == {3: 5}
    assert scheduler.num_preemptions == 1
    assert step(scheduler) == {3: 1, 0: 1}
    scheduler.add(make_sequence(4, 5, urgent))
    scheduler.add(make_sequence(5, 5, urgent))
    assert step(scheduler) == {3: 1, 4: 5}
    assert scheduler.num_preemptions == 2
    assert step(scheduler) == {3: 1, 4: 1}
    scheduler.remove([s for s in scheduler.running if s.arrival in (3, 4)])
    assert step(scheduler) == {5: 5}
    assert step(scheduler) == {5: 1, 0: 1}
    scheduler.remove([s for s in scheduler.running if s.arrival == 5])
    assert step(scheduler) == {0: 1, 1: 1}, "nothing had to be computed again"


def test_choices_take_all_their_seats_or_none() -> None:
    scheduler = make_scheduler(seats=3)
    for order in range(2):
        scheduler.add(make_sequence(order, 4, STANDARD if order == 0 else BATCH))
    step(scheduler)
    parent = make_sequence(2, 4, INTERACTIVE)
    parent.forks = tuple(make_sequence(order, 4, INTERACTIVE) for order in (3, 4))
    scheduler.add(parent)
    assert step(scheduler) == {2: 4}
    assert scheduler.num_preemptions == 2
    assert step(scheduler) == {2: 1, 3: 1, 4: 1}


def test_only_needed_blocks_are_taken_from_the_least_urgent() -> None:
    """Given a full pool, an interactive prompt takes the last blocks of the youngest batch sequence only."""
    scheduler = make_scheduler(blocks=9, budget=64)
    for order, (tokens, priority) in enumerate(((8, BATCH), (12, BATCH), (4, STANDARD))):
        scheduler.add(make_sequence(order, tokens, priority))
    for _ in range(3):
        compute(scheduler)
    old, young, standard = (next(s for s in scheduler.running if s.arrival == order) for order in range(3))
    assert scheduler._cache.pool.num_free == 0
    scheduler.add(make_sequence(3, 8, INTERACTIVE))
    assert step(scheduler) == {3: 8, 2: 1}
    assert [len(s.block_table) for s in (old, young, standard)] == [3, 2, 2]
    assert young.num_computed_tokens == 8
    assert young not in scheduler.running
    assert old in scheduler.running


def three_in_a_full_pool() -> tuple[Scheduler, list[Sequence]]:
    """Return three sequences, of which the first needs a block, and no block is free."""
    scheduler = make_scheduler(blocks=5)
    for order, tokens in enumerate((3, 4, 4)):
        scheduler.add(make_sequence(order, tokens))
    assert step(scheduler) == {0: 3, 1: 4, 2: 4}
    assert step(scheduler) == {0: 1, 1: 1, 2: 1}
    assert scheduler._cache.pool.num_free == 0
    return scheduler, list(scheduler.running)


def test_sequence_is_not_preempted_again_before_it_advances() -> None:
    """If the youngest was preempted before, the next youngest is; if all were, only the most urgent may."""
    scheduler, (_, second, third) = three_in_a_full_pool()
    third.preempted = True
    assert step(scheduler) == {0: 1, 2: 1}
    assert second not in scheduler.running
    assert not third.preempted

    scheduler, (_, second, third) = three_in_a_full_pool()
    second.preempted = third.preempted = True
    assert step(scheduler) == {0: 1, 1: 1}


def test_sequence_without_a_victim_skips_the_step() -> None:
    """Given only a sequence that must not be preempted, a less urgent one waits a step for a block."""
    scheduler, (first, second, third) = three_in_a_full_pool()
    first.tokens, first.num_computed_tokens = [0] * 4, 3
    second.tokens, second.num_computed_tokens = [0] * 9, 8
    third.preempted = True
    assert step(scheduler) == {0: 1, 2: 1}
    assert second in scheduler.running
    first.tokens, first.num_computed_tokens = [0] * 4, 3
    assert step(scheduler) == {0: 1, 1: 1}
    assert third not in scheduler.running


def test_seat_is_not_taken_before_a_resumed_sequence_advances() -> None:
    scheduler = make_scheduler(seats=1)
    scheduler.add(make_sequence(0, 4, BATCH))
    step(scheduler)
    scheduler.running[0].preempted = True
    scheduler.add(make_sequence(1, 4, INTERACTIVE))
    assert step(scheduler) == {0: 1}
    assert step(scheduler) == {1: 4}


def test_more_urgent_waiting_sequences_keep_their_blocks() -> None:
    scheduler = make_scheduler(blocks=2)
    urgent, other = make_sequence(0, 8, INTERACTIVE), make_sequence(1, 4, BATCH)
    assert scheduler._cache.allocate(urgent, 8)
    scheduler._waiting.requeue(urgent)
    assert not scheduler._free_blocks(1, other, [])
    assert len(urgent.block_table) == 2


def test_most_urgent_advances_when_answers_fill_the_budget() -> None:
    scheduler = make_scheduler(budget=2)
    for order in range(2):
        scheduler.add(make_sequence(order, 1))
    assert step(scheduler) == {0: 1, 1: 1}
    scheduler.add(make_sequence(2, 3, INTERACTIVE))
    assert step(scheduler) == {2: 1, 0: 1}


def test_preempted_sequence_resumes_within_its_batch() -> None:
    """Given a policy that lets no sequence join a running batch, a preempted one of the batch resumes."""
    policy = FixedBatching(2, 0.0, pads=False)
    scheduler = Scheduler(KVCacheManager(BlockPool(100), 4), 32, 16, policy=policy)
    for order in range(3):
        scheduler.add(make_sequence(order, 2))
    assert step(scheduler) == {0: 2, 1: 2}
    scheduler._preempt(scheduler.running[1])
    assert step(scheduler) == {0: 1, 1: 1}


class Reference(Scheduler):
    """Scheduler that decides on each sequence of each step."""

    def _answers(self, rows: list[Sequence]) -> None:
        return None


def work(batch: ScheduledBatch) -> list[tuple[int, int, bool, list[int]]]:
    return [
        (s.arrival, item.num_new_tokens, item.samples, s.block_table.tolist())
        for item in batch.items
        for s in (item.sequence,)
    ]


def test_random_work_always_advances() -> None:
    """Given random arrivals of all classes and few blocks: the most urgent sequence advances in every step, a
    preempted one advances before it is preempted again (except by the most urgent), and all end. The steps are
    those of the reference.
    """
    rng = random.Random(2)
    scheduler = make_scheduler(blocks=24, budget=24, seats=6)
    reference = Reference(KVCacheManager(BlockPool(24), 4), 6, 24)
    wanted: dict[int, int] = {}
    order = thrashed = answered = 0
    while order < 400 or scheduler.has_work():
        if order < 400 and rng.random() < 0.3:
            place = (rng.randint(1, 40), rng.choice(list(PriorityClass)), f"t{order % 3}")
            wanted[order] = rng.randint(1, 40)
            for each in (scheduler, reference):
                each.add(make_sequence(order, *place))
            order += 1
        gave_way = {s: s.num_tokens for s in scheduler.running if s.preempted}
        batch = compute(scheduler)
        assert work(batch) == work(compute(reference))
        answered += batch.answers_only
        assert sum(item.num_new_tokens for item in batch.items) <= 24
        assert sum(s.seats for s in scheduler.running) <= 6
        if scheduler.running:
            assert scheduler.running[0] in [item.sequence for item in batch.items]
        thrashed += sum(s not in scheduler.running and s.num_tokens == n for s, n in gave_way.items())
        for each in (scheduler, reference):
            each.remove([s for s in each.running if s.num_output_tokens >= wanted[s.arrival]])
    assert scheduler._cache.pool.num_free == 24
    assert scheduler.num_preemptions > 100
    assert thrashed <= scheduler.num_preemptions // 50
    assert answered > 100
