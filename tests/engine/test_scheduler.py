"""What a step may compute, decided without a model: budgets, order and preemption."""

from __future__ import annotations

from shared.protocol import SamplingParams
from workers.engine.detokenizer import TextStream
from workers.engine.kv_cache import BlockPool, KVCacheManager
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence


def make_sequence(order: int, num_tokens: int) -> Sequence:
    text = TextStream(lambda ids: "")
    return Sequence("r", order, order, SamplingParams(), [0] * num_tokens, num_tokens, 99, frozenset(), text)


def make_scheduler(blocks: int = 100, budget: int = 16) -> Scheduler:
    return Scheduler(KVCacheManager(BlockPool(blocks), 4), 32, budget)


def step(scheduler: Scheduler) -> dict[int, int]:
    """Run one step; the number of new tokens by the sequence's order."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    for item in batch.items:
        if not item.sequence.num_uncomputed_tokens:
            item.sequence.tokens.append(0)
    return {item.sequence.order: item.num_new_tokens for item in batch.items}


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
    assert step(scheduler) == {1: 9, 2: 1}
