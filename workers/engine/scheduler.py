"""Decides what one step computes: which sequences, and how many tokens of each.

There is no prefill phase and no decoding phase: a sequence has `num_tokens`, of which `num_computed_tokens`
are in the cache, and a step moves the second number towards the first. It knows nothing of tensors, logits or
text.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from workers.engine.kv_cache import KVCacheManager
from workers.engine.sequence import Sequence


@dataclass(frozen=True)
class ScheduledSequence:
    """The next `num_new_tokens` tokens after the computed ones of `sequence`."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        """Whether this step reaches the sequence's last token, so that the next can be drawn."""
        return self.num_new_tokens == self.sequence.num_uncomputed_tokens


@dataclass(frozen=True)
class ScheduledBatch:
    """One step's work, and the (from, to) block copies that come before it."""

    items: list[ScheduledSequence]
    copies: list[tuple[int, int]]


class Scheduler:
    """First come, first served, under a budget of tokens a step.

    Sequences whose last token alone is missing go first, one token each, so that a long prompt does not stall
    running answers; the rest of the budget goes to chunks of prompts. Where blocks run out the youngest
    running sequence gives up its own and waits, first in line, to be computed again: the oldest always
    advances.
    """

    def __init__(self, cache: KVCacheManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Sequence] = []  # oldest first
        self._waiting: OrderedDict[Sequence, None] = OrderedDict()  # so that leaving costs the same anywhere
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def has_work(self) -> bool:
        return bool(self.running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting[sequence] = None

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Forget sequences that ended or were aborted, and free their blocks."""
        for sequence in sequences:
            self._cache.free(sequence)
            if sequence in self._waiting:
                del self._waiting[sequence]
            elif sequence in self.running:
                self.running.remove(sequence)

    def schedule(self) -> ScheduledBatch:
        items: list[ScheduledSequence] = []
        budget = self._max_num_batched_tokens
        decodes = sum(sequence.num_uncomputed_tokens == 1 for sequence in self.running)
        chunks = max(0, budget - decodes)  # what prompts may use
        preemptions = self.num_preemptions
        at = 0
        while at < len(self.running):  # preemption shortens the list, from its end
            sequence = self.running[at]
            at += 1
            missing = sequence.num_uncomputed_tokens
            num_new = min(missing, budget if missing == 1 else chunks)
            if num_new and self._reserve(sequence, num_new):
                items.append(ScheduledSequence(sequence, num_new))
                budget -= num_new
                chunks -= num_new if missing > 1 else 0
        if self.num_preemptions == preemptions:
            self._admit(items, chunks)
        return ScheduledBatch(items, self._cache.take_copies())

    def advance(self, batch: ScheduledBatch) -> None:
        """Count what the step computed; choices that waited for a prompt begin."""
        for item in batch.items:
            sequence = item.sequence
            sequence.num_computed_tokens += item.num_new_tokens
            if sequence.forks and sequence.num_computed_tokens >= sequence.num_prompt_tokens:
                self._fork(sequence)

    def _admit(self, items: list[ScheduledSequence], chunks: int) -> None:
        """Start waiting sequences while there are tokens, seats and blocks.

        A sequence gets the blocks of all its tokens at once, and one block more for each that runs stays
        free, so that it is not preempted before it has advanced.
        """
        seats = self._max_num_seqs - sum(sequence.seats for sequence in self.running)
        while self._waiting and chunks > 0:
            sequence = next(iter(self._waiting))
            needed = self._cache.blocks_for(sequence.num_tokens) + len(self.running)
            if sequence.seats > seats or (self.running and needed > self._cache.pool.num_free):
                return
            if not self._cache.allocate(sequence, sequence.num_tokens):
                return
            del self._waiting[sequence]
            self._run(sequence)
            num_new = min(sequence.num_uncomputed_tokens, chunks)
            items.append(ScheduledSequence(sequence, num_new))
            seats -= sequence.seats
            chunks -= num_new

    def _reserve(self, sequence: Sequence, num_new: int) -> bool:
        """Blocks for the next tokens, from younger sequences where need be; False where it had to give up
        itself.
        """
        while not self._cache.allocate(sequence, sequence.num_computed_tokens + num_new):
            victim = self.running.pop()
            self._cache.free(victim)
            self._waiting[victim] = None
            self._waiting.move_to_end(victim, last=False)
            self.num_preemptions += 1
            if victim is sequence:
                return False
        return True

    def _fork(self, parent: Sequence) -> None:
        """Start the other choices; each computes the prompt's last token itself, to draw from its logits."""
        for child in parent.forks:
            self._cache.fork(parent, child, parent.num_prompt_tokens - 1)
            self._run(child)
        parent.forks = []

    def _run(self, sequence: Sequence) -> None:
        bisect.insort(self.running, sequence, key=lambda other: other.order)
