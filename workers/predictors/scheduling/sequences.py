"""Batching of requests that belong to sequences, with the rules of Triton's sequence batcher.

A sequence keeps its place on one instance from its first request to its last. Sequences beyond the places wait, in
order. Its requests are executed one after another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from shared.errors import HeadraceError, InvalidRequest
from shared.repository.spec import ModelSpec, SequenceBatching
from workers.predictors.scheduling.job import Batch, Job, Row, Sequence, SequenceKey
from workers.predictors.scheduling.policy_queue import NS_PER_US


def sequence_key(job: Job) -> SequenceKey:
    assert job.work.sequence is not None
    return job.request.tenant, job.work.sequence.id


class SequenceBatcher(ABC):
    """Requests of sequences. A subclass chooses which of them an instance executes together.

    Args:
        places: sequences that each instance has a place for.
    """

    binds = True
    expires = False

    def __init__(self, spec: ModelSpec, instances: int, places: int) -> None:
        assert spec.sequence_batching is not None
        self._model = spec.name
        self._config: SequenceBatching = spec.sequence_batching
        self._max_idle_ns = self._config.max_sequence_idle_microseconds * NS_PER_US
        self._places: list[list[Sequence | None]] = [[None] * places for _ in range(instances)]
        self._backlog: deque[Sequence] = deque()
        self._open: dict[SequenceKey, Sequence] = {}  # that may get further requests
        self._sequences: dict[Job, Sequence] = {}  # of waiting requests
        self.wake_at: int | None = None

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def drained(self) -> bool:
        return not self._sequences and not self._open

    def knows(self, key: SequenceKey) -> bool:
        return key in self._open

    def forget(self) -> None:
        """Accept only new sequences from now on."""
        self._open.clear()

    def add(self, job: Job, now: int) -> None:
        """Raises InvalidRequest for a request of a sequence that has not begun, or has expired."""
        self._reap(now)
        sequence = self._find(job)
        sequence.jobs.append(job)
        sequence.idle_since = now
        self._sequences[job] = sequence
        assert job.work.sequence is not None
        if job.work.sequence.end:  # further requests with its id belong to another sequence
            sequence.ending = True
            del self._open[sequence.key]

    def remove(self, job: Job) -> bool:
        sequence = self._sequences.pop(job, None)
        if sequence is None:
            return False
        sequence.jobs.remove(job)
        self._release_if_done(sequence)
        return True

    def take(self, instance: int, now: int) -> Batch | None:
        self._reap(now)
        self.wake_at = min((each.idle_since + self._max_idle_ns for each in self._idle()), default=None)
        rows = [self._row(sequence, ready=ready) for sequence, ready in self._choose(instance, now)]
        return Batch(tuple(rows), instance, self._positional) if rows else None

    def _row(self, sequence: Sequence | None, *, ready: bool) -> Row:
        if sequence is None or not ready:
            return Row(None, sequence)
        job = sequence.take()
        del self._sequences[job]
        return Row(job, sequence)

    def finish(self, batch: Batch, now: int) -> None:
        for row in batch.rows:
            if row.job is not None and row.sequence is not None:
                row.sequence.running = False
                row.sequence.idle_since = now
                self._release_if_done(row.sequence)

    def expire(self, now: int) -> list[tuple[Job, HeadraceError]]:
        """Do nothing: queue policies do not apply to sequences."""
        return []

    def next_expiry(self) -> int | None:
        return None

    _positional = False

    @abstractmethod
    def _choose(self, instance: int, now: int) -> list[tuple[Sequence | None, bool]]:
        """Return the rows of the next batch: the sequence of each, and whether its next request is executed."""

    def _wake_by(self, time: int) -> None:
        self.wake_at = time if self.wake_at is None else min(time, self.wake_at)

    def _find(self, job: Job) -> Sequence:
        step = job.work.sequence
        if step is None:
            raise InvalidRequest(f"{self._model} needs a sequence id", param="sequence_id")
        if job.checked.batch_size > 1:
            raise InvalidRequest(f"a request of a sequence to {self._model} must have a batch size of 1")
        key = sequence_key(job)
        if key in self._open:
            return self._open[key]
        if not step.start:
            raise InvalidRequest(
                f"sequence {step.id} of {self._model} has not begun, or was idle for too long: its first request "
                "must have sequence_start",
                param="sequence_start",
            )
        sequence = self._open[key] = Sequence(key)
        self._backlog.append(sequence)
        self._assign()
        return sequence

    def _idle(self) -> list[Sequence]:
        return [sequence for sequence in self._open.values() if sequence.idle]

    def _reap(self, now: int) -> None:
        """End the sequences that have been idle for too long."""
        for sequence in self._idle():
            if now - sequence.idle_since >= self._max_idle_ns:
                del self._open[sequence.key]
                self._release_if_done(sequence)

    def _release_if_done(self, sequence: Sequence) -> None:
        """Give the place of a sequence that gets no further request to another."""
        if not sequence.idle or self._open.get(sequence.key) is sequence:
            return
        if sequence.instance is None:
            self._backlog.remove(sequence)
        else:
            places = self._places[sequence.instance]
            places[places.index(sequence)] = None
            sequence.instance = None
            self._assign()

    def _assign(self) -> None:
        """Give free places to the sequences that wait longest, on the instance with the most free ones."""
        while self._backlog:
            instance = max(range(len(self._places)), key=lambda each: self._places[each].count(None))
            places = self._places[instance]
            if None not in places:
                return
            sequence = self._backlog.popleft()
            sequence.instance = instance
            places[places.index(None)] = sequence
