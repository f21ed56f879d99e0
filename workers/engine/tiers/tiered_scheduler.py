"""Scheduler of an engine with a KV tier: new sequences may wait for their blocks, and full blocks are saved."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.tiers.tiers import KVTier


class TieredScheduler(Scheduler):
    """Scheduler with a KV tier; see `Scheduler`."""

    def __init__(self, tier: KVTier, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._tier = tier
        self._began: float | None = None

    @property
    def num_waiting(self) -> int:
        return super().num_waiting + self._tier.num_waiting

    def has_work(self) -> bool:
        return super().has_work() or self._tier.num_waiting > 0

    def add(self, sequence: Sequence) -> None:
        if not self._tier.hold(sequence):
            super().add(sequence)

    def remove(self, sequences: Iterable[Sequence], *, failed: bool = False) -> None:
        removed = list(sequences)
        for sequence in removed:
            self._tier.forget(sequence, failed=failed)
        super().remove(removed, failed=failed)

    def finish(self, sequence: Sequence) -> None:
        self._tier.save(sequence)
        super().finish(sequence)

    def schedule(self) -> ScheduledBatch:
        for sequence in self._tier.ready(len(self.running)):
            super().add(sequence)
        batch = super().schedule()
        if not batch.items:
            self._tier.wait()
        self._began = time.perf_counter()
        return batch

    def advance(self, batch: ScheduledBatch) -> None:
        if self._began is not None:
            if any(item.num_new_tokens > 1 for item in batch.items):
                self._tier.rates.note_step(batch.num_rows, time.perf_counter() - self._began)
            self._began = None
        super().advance(batch)
        for item in batch.items:
            self._tier.save(item.sequence)
