"""Decides what one step computes: which sequences, and how many tokens of each.

There is no prefill phase and no decoding phase: a sequence has `num_tokens`, of which `num_computed_tokens`
are in the cache, and a step moves the second number towards the first. It knows nothing of tensors, logits or
text.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.protocol import PriorityClass
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.scheduling.batching_policies import Continuous, Policy
from workers.engine.scheduling.fair_queue import WaitingQueue
from workers.engine.scheduling.prompt_budget import share_prompt_budget
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

    @property
    def scores(self) -> range:
        """The positions of this step that tell how likely the prompt's next token was, where that is asked."""
        echo = self.sequence.echo
        return range(0) if echo is None else echo.scores_at(self.sequence.num_computed_tokens, self.num_new_tokens)


@dataclass(frozen=True)
class ScheduledBatch:
    """One step's work, and the (from, to) block copies that come before it."""

    items: list[ScheduledSequence]
    copies: list[tuple[int, int]]

    @property
    def interruptible(self) -> bool:
        """Whether an urgent arrival may make the step be abandoned: what is scheduled then has no rows of the batch
        class, which make the most of a step's time, until the new prompt is computed. So no step is given up twice.
        """
        return any(item.sequence.priority is PriorityClass.BATCH for item in self.items)


class Scheduler:
    """The most urgent first, under a budget of tokens a step.

    Order: class, then arrival. Sequences whose last token alone is missing get a row each, so that a long prompt
    does not stall running answers; the rest of the budget goes to chunks of prompts, which the tenants of a class
    share (chunks.py). While a more urgent class computes a prompt, rows of the batch class are left out: each of
    them would lengthen the step, and with it the wait for the first token.

    Where blocks or seats run out, the least urgent class gives way first, and in it the youngest; for blocks to
    anybody more urgent, for a seat to a more urgent class only. Whoever gives way keeps what blocks nobody needs,
    is next of its class, and does not give way again before it has advanced by a token; only the most urgent
    sequence of all may make it, since that one always advances.
    """

    def __init__(
        self,
        cache: KVCacheManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        tenant_weights: Mapping[str, float] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._policy = policy or Continuous()
        self.running: list[Sequence] = []  # most urgent first
        self._weights = tenant_weights or {}
        self._waiting = WaitingQueue(self._weights)
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def has_work(self) -> bool:
        return bool(self.running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting.add(sequence)

    def remove(self, sequences: Iterable[Sequence], *, failed: bool = False) -> None:
        """Forget sequences that ended or were aborted, and free their blocks; of failed ones nobody reuses any."""
        for sequence in sequences:
            if failed:
                self._cache.disown(sequence)
            self._cache.free(sequence)
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            elif sequence in self.running:
                self.running.remove(sequence)
        self._end_batch()

    def finish(self, sequence: Sequence) -> None:
        """The sequence has ended; where the policy pads, it keeps its row until all of the batch have."""
        if self._policy.pads:
            self._end_batch()
        else:
            self.remove([sequence])

    def schedule(self) -> ScheduledBatch:
        self._admit()
        rows = self._rows()
        items: list[ScheduledSequence] = []
        budget = self._max_num_batched_tokens
        prompts = [sequence for sequence in rows if sequence.num_uncomputed_tokens > 1]
        chunks = share_prompt_budget(prompts, max(1, budget - (len(rows) - len(prompts))), self._weights)
        for sequence in rows:
            num_new = min(chunks.get(sequence, 1), budget)
            gave_way = sequence in self._waiting or (sequence.ended and not sequence.block_table)
            if num_new and not gave_way and self._reserve(sequence, num_new):
                items.append(ScheduledSequence(sequence, num_new))
                budget -= num_new
        return ScheduledBatch(items, self._cache.take_copies())

    def advance(self, batch: ScheduledBatch) -> None:
        """Count what the step computed; choices that waited for a prompt begin."""
        for item in batch.items:
            sequence = item.sequence
            if sequence.ended:  # padding
                continue
            if item.samples:
                sequence.preempted = False
                self._waiting.charge(sequence)
            self._cache.advance(sequence, item.num_new_tokens)
            if sequence.forks and sequence.num_computed_tokens >= sequence.num_prompt_tokens:
                self._fork(sequence)

    def _rows(self) -> list[Sequence]:
        """Who may compute in this step, most urgent first, padding last."""
        rows = sorted(self.running, key=lambda sequence: sequence.ended)
        urgent = [sequence for sequence in rows if sequence.priority is not PriorityClass.BATCH]
        return urgent if any(sequence.prefilling for sequence in urgent) else rows

    def _admit(self) -> None:
        """Start waiting sequences while there are tokens, seats and blocks."""
        quota = self._policy.quota(len(self.running), len(self._waiting))
        while quota > 0 and (sequence := self._waiting.head(self._has_share)) is not None:
            if not self._make_room(sequence):
                return
            self._waiting.take(sequence)
            self._run(sequence)
            self._policy.started(1)
            quota -= 1

    def _has_share(self, sequence: Sequence) -> bool:
        """Return whether a waiting sequence would be computed beside those that run and are as urgent."""
        ahead = [other for other in self.running if other.rank <= sequence.rank]
        prompts = [other for other in ahead if other.num_uncomputed_tokens > 1]
        chunks = self._max_num_batched_tokens - (len(ahead) - len(prompts))
        return share_prompt_budget([*prompts, sequence], chunks, self._weights)[sequence] > 0

    def _make_room(self, sequence: Sequence) -> bool:
        """Seats and blocks for a waiting sequence; False, and nothing has changed, where it must wait."""
        lower = [other for other in self.running if other.rank > sequence.rank and not other.preempted]
        free_seats = self._max_num_seqs - sum(other.seats for other in self.running)
        leaving: list[Sequence] = []
        while free_seats < sequence.seats and lower[len(leaving) :]:
            leaving.append(lower[-1 - len(leaving)])
            free_seats += leaving[-1].seats
        if free_seats < sequence.seats or not self._place(sequence, lower):
            return False
        for other in leaving:
            self._preempt(other)
        return True

    def _place(self, sequence: Sequence, lower: list[Sequence]) -> bool:
        """The blocks of all its tokens, some perhaps from `lower`; False, and nothing has changed, where it waits.

        What those that could take blocks from it may need until it has advanced stays free, so that they do not.
        """
        prefixes = self._cache.prefixes
        found = prefixes.reuse(sequence) if prefixes else 0
        steps = -(-sequence.num_uncomputed_tokens // self._max_num_batched_tokens)
        rivals = sum(other.rank <= sequence.rank for other in self.running)
        wanted = self._cache.missing(sequence, sequence.num_tokens) + rivals * self._cache.blocks_for(steps)
        if self._free_blocks(wanted, sequence, lower):
            return self._cache.allocate(sequence, sequence.num_tokens)
        if prefixes:
            prefixes.undo(sequence, found)
        return False

    def _reserve(self, sequence: Sequence, num_new: int) -> bool:
        """Blocks for the next tokens of a running sequence; False where it must stay as it is for this step."""
        wanted = sequence.num_computed_tokens + num_new
        if self._cache.allocate(sequence, wanted):
            return True
        if sequence.ended:  # padding takes from nobody
            return False
        behind = self.running[self.running.index(sequence) + 1 :]
        if sequence is not self.running[0]:
            behind = [other for other in behind if not other.preempted]
        missing = self._cache.missing(sequence, wanted)
        return self._free_blocks(missing, sequence, behind) and self._cache.allocate(sequence, wanted)

    def _free_blocks(self, wanted: int, sequence: Sequence, running: list[Sequence]) -> bool:
        """Let `wanted` blocks be free, from `running` and from those that wait, as far as they are less urgent.

        Each gives up its last blocks, and no more than are needed. False, and nothing has changed, where that is
        too few.
        """
        pool = self._cache.pool
        if wanted <= pool.num_free:
            return True
        padding = [other for other in self.running if other.ended]
        waiting = [other for other in self._waiting.preempted() if other.urgency > sequence.urgency]
        victims = dict.fromkeys([*padding, *waiting, *running])
        if wanted > pool.num_free + self._cache.freeable(victims):
            return False

        def expendable(other: Sequence) -> tuple[bool, bool, int, bool, int]:
            waits = other in waiting
            return other in padding, waits or not other.preempted, other.rank, waits, other.order

        for victim in sorted(victims, key=expendable, reverse=True):
            if wanted <= pool.num_free:
                break
            self._preempt(victim)
            while victim.block_table and wanted > pool.num_free:
                self._cache.release_last(victim)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Let a running sequence wait, with its blocks."""
        if sequence in self._waiting:
            return
        self.running.remove(sequence)
        if sequence.ended:
            self._cache.free(sequence)
            return
        self._policy.started(-1)
        self._waiting.put_back(sequence)
        sequence.preempted = True
        self.num_preemptions += 1

    def _end_batch(self) -> None:
        """Let go of padding that is left alone."""
        if all(sequence.ended for sequence in self.running):
            for sequence in self.running:
                self._cache.free(sequence)
            self.running.clear()

    def _fork(self, parent: Sequence) -> None:
        """Start the other choices; each computes the prompt's last token itself, to draw from its logits."""
        for child in parent.forks:
            self._cache.fork(parent, child, parent.num_prompt_tokens - 1)
            self._run(child)
        parent.forks = []

    def _run(self, sequence: Sequence) -> None:
        bisect.insort(self.running, sequence, key=lambda other: other.urgency)
