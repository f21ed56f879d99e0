"""Scheduler: it decides which sequences one step computes, and how many tokens of each.

Prefill and decode are not separate phases: a sequence has `num_tokens`, of which `num_computed_tokens` are in the
cache, and each step brings the second number closer to the first.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

from shared.protocol import PriorityClass
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.scheduling.batching_policies import BatchingPolicy, ContinuousBatching
from workers.engine.scheduling.fair_queue import WaitingQueue
from workers.engine.scheduling.prompt_budget import share_prompt_budget
from workers.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledSequence
from workers.engine.sequence import Sequence


class Scheduler:
    """Scheduler that serves the most urgent sequences first, within a budget of tokens per step.

    Sequences are ordered by class, then by arrival. Each sequence that lacks only its last token gets a row, so
    that a long prompt does not stall running answers. The rest of the budget goes to chunks of prompts, which the
    tenants of a class share (prompt_budget.py). While a more urgent class computes a prompt, rows of the batch
    class are left out: each would lengthen the step, and so the wait for the first token.

    When blocks or seats run out, the youngest sequence of the least urgent class is preempted first: for blocks by
    any more urgent sequence, for a seat by a more urgent class only. A preempted sequence keeps the blocks that are
    not needed, is the next of its class, and is not preempted again until it has advanced by a token. The most
    urgent sequence of all is the exception: it may preempt any other, so it always advances.
    """

    def __init__(
        self,
        cache: KVCacheManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        tenant_weights: Mapping[str, float] | None = None,
        policy: BatchingPolicy | None = None,
    ) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._policy = policy or ContinuousBatching()
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
        """Remove ended or aborted sequences and free their blocks; what failed ones computed is not reused."""
        for sequence in sequences:
            if failed:
                self._cache.invalidate(sequence)
            self._cache.free(sequence)
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            elif sequence in self.running:
                self.running.remove(sequence)
        self._end_batch()

    def finish(self, sequence: Sequence) -> None:
        """Remove an ended sequence. If the policy pads, its last token keeps a row until its batch has ended."""
        if self._policy.pads and sequence.num_uncomputed_tokens:
            self._end_batch()
        else:
            self.remove([sequence])

    def schedule(self) -> ScheduledBatch:
        """Return the work of the next step, after starting and preempting sequences for it."""
        self._admit()
        rows = self._runnable()
        return self._answers(rows) or self._batch(rows)

    def _answers(self, rows: list[Sequence]) -> ScheduledBatch | None:
        """Return the batch in which each sequence computes its last token, as in nearly every step.

        Return None if one lacks more than that, or if tokens or blocks are too few. Then `_batch` decides.
        """
        if self._policy.pads or len(rows) > self._max_num_batched_tokens:
            return None
        if [sequence for sequence in rows if len(sequence.tokens) - sequence.num_computed_tokens != 1]:
            return None
        full = [sequence for sequence in rows if sequence.num_computed_tokens >= sequence.num_writable_tokens]
        if not all(self._cache.allocate(sequence, len(sequence.tokens)) for sequence in full):
            return None
        items = [ScheduledSequence(sequence, 1, True) for sequence in rows]
        return ScheduledBatch(items, self._cache.take_copies(), answers_only=True)

    def _batch(self, rows: list[Sequence]) -> ScheduledBatch:
        """Return the batch of these sequences, most urgent first, after preempting others for it."""
        items: list[ScheduledSequence] = []
        budget = self._max_num_batched_tokens
        prompts = [sequence for sequence in rows if len(sequence.tokens) - sequence.num_computed_tokens > 1]
        chunks = share_prompt_budget(prompts, max(1, budget - (len(rows) - len(prompts))), self._weights)
        preemptions, pads = self.num_preemptions, self._policy.pads
        for sequence in rows:
            num_new = chunks.get(sequence, 1) if chunks else 1
            num_new = budget if budget < num_new else num_new
            if self.num_preemptions > preemptions and sequence in self._waiting:
                continue
            if not num_new or (pads and sequence.ended and not sequence.block_table):
                continue
            wanted = sequence.num_computed_tokens + num_new
            if self._cache.allocate(sequence, wanted) or self._make_blocks(sequence, wanted):
                items.append(ScheduledSequence(sequence, num_new, wanted == len(sequence.tokens)))
                budget -= num_new
        return ScheduledBatch(items, self._cache.take_copies())

    def add_drafts(self, batch: ScheduledBatch, drafts: Mapping[Sequence, tuple[int, ...]]) -> ScheduledBatch:
        """Return the batch with drafted tokens, as many as the budget and the free blocks allow.

        Drafts never preempt a sequence. The blocks that they take are released by `end_drafts`.
        """
        if not drafts:
            return batch
        budget = self._max_num_batched_tokens - batch.num_rows
        items = []
        for item in batch.items:
            wanted = drafts.get(item.sequence, ())[:budget]
            room = self._cache.extend(item.sequence, item.sequence.num_tokens, len(wanted))
            items.append(item.with_drafts(wanted[:room]))
            budget -= min(room, len(wanted))
        return ScheduledBatch(items, batch.copies)

    def advance(self, batch: ScheduledBatch) -> None:
        """Count the tokens that the step computed, and start the choices that waited for a prompt."""
        charged: Sequence | None = None  # of the tenant and class of the last new tokens
        drawn = 0
        for item in batch.items:
            sequence = item.sequence
            if sequence.finish_reason is not None:  # padding
                continue
            if item.samples:
                sequence.preempted = False
                if charged is not None and not (
                    sequence.tenant == charged.tenant and sequence.priority is charged.priority
                ):
                    self._waiting.charge(charged.priority, charged.tenant, drawn)
                    drawn = 0
                charged, drawn = sequence, drawn + 1
            self._cache.advance(sequence, item.num_new_tokens)
            if sequence.forks and sequence.num_computed_tokens >= sequence.num_prompt_tokens:
                self._fork(sequence)
        if charged is not None:
            self._waiting.charge(charged.priority, charged.tenant, drawn)

    def accept_draft(self, sequence: Sequence) -> None:
        """Count a drafted token that has become the sequence's last one: its keys and values are in the cache."""
        self._waiting.charge(sequence.priority, sequence.tenant, 1)
        self._cache.advance(sequence, 1)

    def end_drafts(self, batch: ScheduledBatch) -> None:
        """Release the blocks of drafted tokens that were not accepted."""
        for item in batch.items:
            if item.drafts and not item.sequence.ended:
                self._cache.trim(item.sequence)

    def _runnable(self) -> list[Sequence]:
        """Return the running sequences that may compute in this step, most urgent first, padding last."""
        rows = list(self.running)
        mixed = bool(rows) and rows[-1].priority is PriorityClass.BATCH
        if self._policy.pads:
            rows.sort(key=lambda sequence: sequence.ended)
        if not mixed:
            return rows
        urgent = [sequence for sequence in rows if sequence.priority is not PriorityClass.BATCH]
        if len(urgent) == len(rows):
            return rows
        return urgent if any(sequence.prefilling for sequence in urgent) else rows

    def _admit(self) -> None:
        """Start waiting sequences as long as tokens, seats and blocks last."""
        max_starts = self._policy.max_starts(len(self.running), len(self._waiting))
        while max_starts > 0 and (sequence := self._waiting.head(self._gets_tokens)) is not None:
            if not self._make_room(sequence):
                return
            self._waiting.take(sequence)
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
                sequence.waits.start()
            else:
                sequence.waits.resume()
            self._start(sequence)
            self._policy.on_started(1)
            max_starts -= 1

    def _gets_tokens(self, sequence: Sequence) -> bool:
        """Return whether a waiting sequence would get tokens beside the running ones that are as urgent."""
        ahead = [other for other in self.running if other.rank <= sequence.rank]
        prompts = [other for other in ahead if other.num_uncomputed_tokens > 1]
        chunks = self._max_num_batched_tokens - (len(ahead) - len(prompts))
        return share_prompt_budget([*prompts, sequence], chunks, self._weights)[sequence] > 0

    def _make_room(self, sequence: Sequence) -> bool:
        """Make seats and blocks free for a waiting sequence. Return False, and change nothing, if it must wait."""
        lower = [other for other in self.running if other.rank > sequence.rank and not other.preempted]
        free_seats = self._max_num_seqs - sum(other.seats for other in self.running)
        to_preempt: list[Sequence] = []
        while free_seats < sequence.seats and lower[len(to_preempt) :]:
            to_preempt.append(lower[-1 - len(to_preempt)])
            free_seats += to_preempt[-1].seats
        if free_seats < sequence.seats or not self._allocate_blocks(sequence, lower):
            return False
        for other in to_preempt:
            self._preempt(other)
        return True

    def _allocate_blocks(self, sequence: Sequence, lower: list[Sequence]) -> bool:
        """Allocate blocks for all tokens of a waiting sequence, if need be by preempting `lower`.

        The blocks that more urgent sequences may need until this one has advanced stay free, so that they do not
        preempt it at once. Return False, and change nothing, if there are too few blocks.
        """
        prefixes = self._cache.prefixes
        found = prefixes.reuse(sequence) if prefixes else 0
        steps = -(-sequence.num_uncomputed_tokens // self._max_num_batched_tokens)
        rivals = sum(other.rank <= sequence.rank for other in self.running)
        wanted = self._cache.blocks_needed(sequence, sequence.num_tokens) + rivals * self._cache.blocks_for(steps)
        if self._free_blocks(wanted, sequence, lower):
            return self._cache.allocate(sequence, sequence.num_tokens)
        if prefixes:
            prefixes.undo_reuse(sequence, found)
        return False

    def _make_blocks(self, sequence: Sequence, wanted: int) -> bool:
        """Take blocks for the next tokens of a running sequence. Return False if it must skip this step."""
        if sequence.ended:  # padding never preempts
            return False
        behind = self.running[self.running.index(sequence) + 1 :]
        if sequence is not self.running[0]:
            behind = [other for other in behind if not other.preempted]
        missing = self._cache.blocks_needed(sequence, wanted)
        return self._free_blocks(missing, sequence, behind) and self._cache.allocate(sequence, wanted)

    def _free_blocks(self, wanted: int, sequence: Sequence, running: list[Sequence]) -> bool:
        """Make `wanted` blocks free by taking the last blocks of less urgent sequences, running or waiting.

        Only the blocks that are needed are taken. Return False, and change nothing, if there are too few.
        """
        pool = self._cache.pool
        if wanted <= pool.num_free:
            return True
        padding = [other for other in self.running if other.ended]
        waiting = [other for other in self._waiting.preempted() if other.urgency > sequence.urgency]
        victims = dict.fromkeys([*padding, *waiting, *running])
        if wanted > pool.num_free + self._cache.count_freeable(victims):
            return False

        def expendable(other: Sequence) -> tuple[bool, bool, int, bool, int]:
            waits = other in waiting
            return other in padding, waits or not other.preempted, other.rank, waits, other.arrival

        for victim in sorted(victims, key=expendable, reverse=True):
            if wanted <= pool.num_free:
                break
            self._preempt(victim)
            while victim.block_table and wanted > pool.num_free:
                self._cache.release_last(victim)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Move a running sequence to the waiting ones, with its blocks."""
        if sequence in self._waiting:
            return
        self.running.remove(sequence)
        if sequence.ended:
            self._cache.free(sequence)
            return
        self._policy.on_started(-1)
        self._waiting.requeue(sequence)
        sequence.preempted = True
        sequence.waits.preempt()
        self.num_preemptions += 1

    def _end_batch(self) -> None:
        """Free the rows of padding once only padding runs."""
        if all(sequence.ended for sequence in self.running):
            for sequence in self.running:
                self._cache.free(sequence)
            self.running.clear()

    def _fork(self, parent: Sequence) -> None:
        """Start the other choices. Each computes the prompt's last token itself, to draw from its logits."""
        for child in parent.forks:
            self._cache.fork(parent, child, parent.num_prompt_tokens - 1)
            child.num_cached_tokens = parent.num_cached_tokens
            self._start(child)
        parent.forks = ()

    def _start(self, sequence: Sequence) -> None:
        bisect.insort(self.running, sequence, key=lambda other: other.urgency)
