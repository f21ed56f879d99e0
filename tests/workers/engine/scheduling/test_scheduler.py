"""What a step may compute, decided without a model: budgets, classes, tenants and preemption."""

from __future__ import annotations

import random

import pytest

from shared.protocol import PriorityClass, SamplingParams
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.scheduling.batching_policies import FixedBatching
from workers.engine.scheduling.scheduler import ScheduledBatch, Scheduler
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream

INTERACTIVE, STANDARD, BATCH = PriorityClass


def make_sequence(
    order: int, num_tokens: int, priority: PriorityClass = STANDARD, tenant: str = "default"
) -> Sequence:
    text = TextStream(lambda ids: "")
    sequence = Sequence("r", order, order, SamplingParams(), [0] * num_tokens, num_tokens, 99, frozenset(), text)
    sequence.priority, sequence.tenant = priority, tenant
    return sequence


def make_scheduler(blocks: int = 100, budget: int = 16, seats: int = 32, **weights: float) -> Scheduler:
    return Scheduler(KVCacheManager(BlockPool(blocks), 4), seats, budget, weights)


def compute(scheduler: Scheduler) -> ScheduledBatch:
    """One step, whose samples are all 0."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    for item in batch.items:
        if not item.sequence.num_uncomputed_tokens:
            item.sequence.tokens.append(0)
    return batch


def step(scheduler: Scheduler) -> dict[int, int]:
    """Run one step; the number of new tokens by the sequence's order."""
    batch = compute(scheduler)
    return {item.sequence.arrival: item.num_new_tokens for item in batch.items}


def test_a_step_never_exceeds_its_budget_and_prompts_get_what_answers_leave() -> None:
    scheduler = make_scheduler()
    for order, num_tokens in enumerate((5, 8, 40)):
        scheduler.add(make_sequence(order, num_tokens))
    assert step(scheduler) == {0: 5, 1: 8, 2: 3}
    assert step(scheduler) == {0: 1, 1: 1, 2: 14}
    assert step(scheduler) == {0: 1, 1: 1, 2: 14}
    assert step(scheduler) == {0: 1, 1: 1, 2: 9}
    assert step(scheduler) == {0: 1, 1: 1, 2: 1}


def test_an_older_prompt_does_not_take_a_younger_answers_row() -> None:
    """Given a choice resumed with many tokens, if a younger one lacks only its last token, both advance."""
    scheduler = make_scheduler()
    parent, long, short = make_sequence(0, 4), make_sequence(1, 4), make_sequence(2, 4)
    long.tokens += [0] * 60
    parent.forks = [long, short]
    scheduler.add(parent)
    assert step(scheduler) == {0: 4}
    assert step(scheduler) == {0: 1, 1: 14, 2: 1}


def test_a_budget_smaller_than_the_batch_serves_the_oldest() -> None:
    scheduler = make_scheduler(budget=2)
    for order in range(3):
        scheduler.add(make_sequence(order, 1))
    assert step(scheduler) == {0: 1, 1: 1}
    assert step(scheduler) == {0: 1, 1: 1}


def test_the_youngest_gives_way_and_is_first_in_line_again() -> None:
    """Given two sequences that outgrow the pool, the younger waits, before a third, until the older ends."""
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


def test_the_more_urgent_class_goes_first() -> None:
    """Given a prompt of each class in any order, chunks go to the most urgent, also before one that runs."""
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 40, BATCH))
    assert step(scheduler) == {0: 16}
    scheduler.add(make_sequence(1, 10, STANDARD))
    scheduler.add(make_sequence(2, 12, INTERACTIVE))
    assert step(scheduler) == {2: 12, 1: 4}
    assert step(scheduler) == {2: 1, 1: 6}
    assert step(scheduler) == {2: 1, 1: 1, 0: 14}


def test_batch_rows_stay_out_while_a_more_urgent_prompt_is_computed() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 4, BATCH))
    assert step(scheduler) == {0: 4}
    assert step(scheduler) == {0: 1}
    scheduler.add(make_sequence(1, 20, STANDARD))
    assert step(scheduler) == {1: 16}
    assert step(scheduler) == {1: 4}
    assert step(scheduler) == {1: 1, 0: 1}


def test_the_least_served_tenant_goes_first() -> None:
    """Given one tenant with many prompts and one with two, they take turns; each tenant's go by arrival."""
    scheduler = make_scheduler(budget=10, seats=1)
    for order in range(4):
        scheduler.add(make_sequence(order, 10, tenant="many"))
    for order in (4, 5):
        scheduler.add(make_sequence(order, 10, tenant="few"))
    begun = []
    for _ in range(6):
        begun += step(scheduler)
        scheduler.remove(list(scheduler.running))
    assert begun == [0, 4, 1, 5, 2, 3]


def test_a_tenants_weight_is_its_share() -> None:
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


def test_a_short_prompt_does_not_wait_for_another_tenants_long_one() -> None:
    """Given a long prompt that is computed, another tenant's is in the next step, and its own tenant's waits."""
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 100, tenant="long"))
    assert step(scheduler) == {0: 16}
    scheduler.add(make_sequence(1, 6, tenant="long"))
    scheduler.add(make_sequence(2, 6, tenant="short"))
    assert step(scheduler) == {0: 10, 2: 6}
    assert step(scheduler) == {0: 15, 2: 1}


def test_two_tenants_long_prompts_share_a_step() -> None:
    scheduler = make_scheduler()
    for order, tenant in enumerate("ab"):
        scheduler.add(make_sequence(order, 24, tenant=tenant))
    assert [step(scheduler) for _ in range(3)] == [{0: 8, 1: 8}] * 3


def test_one_tenants_prompts_are_not_cut_to_share() -> None:
    scheduler = make_scheduler()
    for order in range(3):
        scheduler.add(make_sequence(order, 16))
    assert step(scheduler) == {0: 16}
    assert step(scheduler) == {0: 1, 1: 15}


def test_a_more_urgent_class_does_not_share_with_a_lower_one() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 40, INTERACTIVE, tenant="a"))
    scheduler.add(make_sequence(1, 4, STANDARD, tenant="b"))
    assert step(scheduler) == {0: 16}
    assert step(scheduler) == {0: 16}
    assert step(scheduler) == {0: 8, 1: 4}


def test_a_short_prompt_waits_at_most_three_chunks_however_many_long_ones_wait() -> None:
    """Given a long prompt of each of 20 tenants, few are cut, and a newcomer has its first token in three steps."""
    scheduler = make_scheduler(blocks=1000)
    for order in range(20):
        scheduler.add(make_sequence(order, 100, tenant=f"long-{order}"))
    for order in range(20, 60):
        for _ in range(3):
            assert sum(tokens > 1 for tokens in step(scheduler).values()) <= 3
        newcomer = make_sequence(order, 1 + order % 8, tenant=f"short-{order}")
        scheduler.add(newcomer)
        for _ in range(3):
            compute(scheduler)
        assert newcomer.num_output_tokens > 0
        scheduler.remove([s for s in scheduler.running if s.num_output_tokens])


def test_who_was_away_has_saved_nothing_up() -> None:
    """Given a tenant that was served much while another had nothing to do, they share from then on."""
    scheduler = make_scheduler(budget=10, seats=1)
    for order in range(8):
        scheduler.add(make_sequence(order, 10, tenant="early"))
    for _ in range(6):
        step(scheduler)
        scheduler.remove(list(scheduler.running))
    for order in range(8, 12):
        scheduler.add(make_sequence(order, 10, tenant="late"))
    begun = []
    for _ in range(4):
        begun += step(scheduler)
        scheduler.remove(list(scheduler.running))
    assert sorted(begun) == [6, 7, 8, 9]


def test_tenants_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.scheduling.fair_queue.MAX_REMEMBERED_TENANTS", 10)
    scheduler = make_scheduler(budget=10)
    for order in range(200):
        scheduler.add(make_sequence(order, 10, tenant=f"tenant-{order}"))
        if order > 3:  # there are always some that wait
            step(scheduler)
            scheduler.remove(list(scheduler.running))
    queue = scheduler._waiting._classes[STANDARD]
    assert len(queue._served) < 30
    assert len(queue._heap) < 30


@pytest.mark.parametrize("urgent", [INTERACTIVE, STANDARD])
def test_a_more_urgent_class_takes_a_seat_and_an_equal_one_does_not(urgent: PriorityClass) -> None:
    """Given all seats taken by batch work, its youngest gives way with its blocks kept, and goes on after."""
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
    parent.forks = [make_sequence(order, 4, INTERACTIVE) for order in (3, 4)]
    scheduler.add(parent)
    assert step(scheduler) == {2: 4}
    assert scheduler.num_preemptions == 2
    assert step(scheduler) == {2: 1, 3: 1, 4: 1}


def test_blocks_come_from_the_least_urgent_and_only_as_many_as_are_needed() -> None:
    """Given a full pool, an interactive prompt takes the tail of the youngest batch sequence, nobody else's."""
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
    """The first needs a block for its next token, and there is none."""
    scheduler = make_scheduler(blocks=5)
    for order, tokens in enumerate((3, 4, 4)):
        scheduler.add(make_sequence(order, tokens))
    assert step(scheduler) == {0: 3, 1: 4, 2: 4}
    assert step(scheduler) == {0: 1, 1: 1, 2: 1}
    assert scheduler._cache.pool.num_free == 0
    return scheduler, list(scheduler.running)


def test_who_has_not_advanced_since_it_gave_way_is_spared() -> None:
    """Given the youngest is one, the next youngest gives way; only where all are does it, to the most urgent."""
    scheduler, (_, second, third) = three_in_a_full_pool()
    third.preempted = True
    assert step(scheduler) == {0: 1, 2: 1}
    assert second not in scheduler.running
    assert not third.preempted

    scheduler, (_, second, third) = three_in_a_full_pool()
    second.preempted = third.preempted = True
    assert step(scheduler) == {0: 1, 1: 1}


def test_who_finds_nobody_to_give_way_stays_as_it_is() -> None:
    """Given only one that is to be spared, whoever needs a block and is not the most urgent waits a step for it."""
    scheduler, (first, second, third) = three_in_a_full_pool()
    first.tokens, first.num_computed_tokens = [0] * 4, 3
    second.tokens, second.num_computed_tokens = [0] * 9, 8
    third.preempted = True
    assert step(scheduler) == {0: 1, 2: 1}
    assert second in scheduler.running
    first.tokens, first.num_computed_tokens = [0] * 4, 3
    assert step(scheduler) == {0: 1, 1: 1}
    assert third not in scheduler.running


def test_a_seat_is_not_taken_from_who_has_not_advanced_since_it_gave_way() -> None:
    scheduler = make_scheduler(seats=1)
    scheduler.add(make_sequence(0, 4, BATCH))
    step(scheduler)
    scheduler.running[0].preempted = True
    scheduler.add(make_sequence(1, 4, INTERACTIVE))
    assert step(scheduler) == {0: 1}
    assert step(scheduler) == {1: 4}


def test_nothing_is_taken_from_the_more_urgent_that_wait() -> None:
    scheduler = make_scheduler(blocks=2)
    urgent, other = make_sequence(0, 8, INTERACTIVE), make_sequence(1, 4, BATCH)
    assert scheduler._cache.allocate(urgent, 8)
    scheduler._waiting.requeue(urgent)
    assert not scheduler._free_blocks(1, other, [])
    assert len(urgent.block_table) == 2


def test_the_most_urgent_advances_however_many_answers_fill_the_budget() -> None:
    scheduler = make_scheduler(budget=2)
    for order in range(2):
        scheduler.add(make_sequence(order, 1))
    assert step(scheduler) == {0: 1, 1: 1}
    scheduler.add(make_sequence(2, 3, INTERACTIVE))
    assert step(scheduler) == {2: 1, 0: 1}


def begun_one_by_one(*waiting: Sequence, steps: int = 1) -> list[int]:
    """In which order they start where there is one seat, each leaving it after so many steps."""
    scheduler = make_scheduler(seats=1)
    for sequence in waiting:
        scheduler.add(sequence)
    begun = []
    while scheduler.has_work():
        for _ in range(steps if not begun else 1):
            last = step(scheduler)
        begun += last
        scheduler.remove(list(scheduler.running))
    return begun


def test_a_tenant_pays_for_its_prompts() -> None:
    """Given prompts of 10 tokens and of 2, and a token of each answer, the long one's tenant waits for four."""
    shorts = [make_sequence(order, 2, tenant="short") for order in range(2, 8)]
    longs = [make_sequence(order, 10, tenant="long") for order in range(2)]
    assert begun_one_by_one(*longs, *shorts) == [0, 2, 3, 4, 5, 1, 6, 7]


def test_a_tenant_pays_for_its_answers() -> None:
    """Given an answer of 10 tokens and then a prompt of 5 from another, the other tenant is still the next."""
    talker = [make_sequence(order, 1, tenant="talker") for order in range(2)]
    other = [make_sequence(order, 5, tenant="other") for order in range(2, 4)]
    assert begun_one_by_one(*talker, *other, steps=10) == [0, 2, 3, 1]


def test_who_gave_way_goes_on_with_its_batch() -> None:
    """Given a policy by which nobody joins a batch that runs, one of the batch does that had to wait."""
    policy = FixedBatching(2, 0.0, pads=False)
    scheduler = Scheduler(KVCacheManager(BlockPool(100), 4), 32, 16, policy=policy)
    for order in range(3):
        scheduler.add(make_sequence(order, 2))
    assert step(scheduler) == {0: 2, 1: 2}
    scheduler._preempt(scheduler.running[1])
    assert step(scheduler) == {0: 1, 1: 1}


def test_random_work_always_advances_and_nobody_gives_way_twice_in_a_row() -> None:
    """Given random arrivals of all classes in a tight pool: the most urgent advances in every step, who gave way
    advances before it does again, save for the most urgent, and all end."""
    rng = random.Random(2)
    scheduler = make_scheduler(blocks=24, budget=24, seats=6)
    wanted: dict[Sequence, int] = {}
    order = thrashed = 0
    while order < 400 or scheduler.has_work():
        if order < 400 and rng.random() < 0.3:
            sequence = make_sequence(order, rng.randint(1, 40), rng.choice(list(PriorityClass)), f"t{order % 3}")
            wanted[sequence] = rng.randint(1, 40)
            scheduler.add(sequence)
            order += 1
        gave_way = {s: s.num_tokens for s in scheduler.running if s.preempted}
        batch = compute(scheduler)
        assert sum(item.num_new_tokens for item in batch.items) <= 24
        assert sum(s.seats for s in scheduler.running) <= 6
        if scheduler.running:
            assert scheduler.running[0] in [item.sequence for item in batch.items]
        thrashed += sum(s not in scheduler.running and s.num_tokens == n for s, n in gave_way.items())
        done = [s for s in scheduler.running if s.num_output_tokens >= wanted[s]]
        scheduler.remove(done)
    assert scheduler._cache.pool.num_free == 24
    assert scheduler.num_preemptions > 100
    assert thrashed <= scheduler.num_preemptions // 50
