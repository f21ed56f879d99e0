"""Schedulers without a model, and steps of them with made-up tokens."""

from __future__ import annotations

from shared.protocol import PriorityClass, SamplingParams
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream

INTERACTIVE, STANDARD, BATCH = PriorityClass


def make_sequence(
    arrival: int, num_tokens: int, priority: PriorityClass = STANDARD, tenant: str = "default"
) -> Sequence:
    """Return a sequence that waits with a prompt of `num_tokens` zeros."""
    text = TextStream(lambda ids: "")
    sequence = Sequence(
        "r", arrival, arrival, SamplingParams(), [0] * num_tokens, num_tokens, 99, frozenset(), text
    )
    sequence.priority, sequence.tenant = priority, tenant
    return sequence


def make_scheduler(blocks: int = 100, budget: int = 16, seats: int = 32, **weights: float) -> Scheduler:
    """Return a scheduler over blocks of 4 tokens; `weights` are those of tenants."""
    return Scheduler(KVCacheManager(BlockPool(blocks), 4), seats, budget, weights)


def compute(scheduler: Scheduler) -> ScheduledBatch:
    """Run one step in which every sampled token is 0."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    for item in batch.items:
        if not item.sequence.num_uncomputed_tokens:
            item.sequence.tokens.append(0)
    return batch


def step(scheduler: Scheduler) -> dict[int, int]:
    """Run one step. Return the number of new tokens by the sequence's arrival."""
    batch = compute(scheduler)
    return {item.sequence.arrival: item.num_new_tokens for item in batch.items}
