"""The strategy `direct` of sequence batching: each sequence has a slot in the batches of its instance."""

from __future__ import annotations

from shared.repository.spec import ModelSpec
from workers.predictors.scheduling.job import Sequence
from workers.predictors.scheduling.policy_queue import NS_PER_US
from workers.predictors.scheduling.sequences import SequenceBatcher
from workers.predictors.scheduling.state_shapes import StateShapes


class DirectBatcher(SequenceBatcher):
    """A batch reaches from the first slot to the last one with a request; the others in between are not ready."""

    _positional = True

    def __init__(self, spec: ModelSpec, instances: int) -> None:
        super().__init__(spec, instances, max(1, spec.max_batch_size))
        self._delay_ns = self._config.max_queue_delay_microseconds * NS_PER_US
        self._shapes = StateShapes(self._config)

    def _choose(self, instance: int, now: int) -> list[tuple[Sequence | None, bool]]:
        slots = self._places[instance]
        waiting = [sequence for sequence in slots if sequence is not None and sequence.ready]
        if not waiting or self._waits(waiting, len(slots), now):
            return []
        oldest = min(waiting, key=lambda sequence: sequence.jobs[0].arrived_ns)
        joins = self._shapes.joins(oldest)
        joined = [sequence for sequence in waiting if self._shapes.joins(sequence) == joins]
        ready = [sequence in joined for sequence in slots]
        last = max(slot for slot, is_ready in enumerate(ready) if is_ready)
        return list(zip(slots[: last + 1], ready[: last + 1], strict=True))

    def _waits(self, waiting: list[Sequence], slots: int, now: int) -> bool:
        """Return whether the batch waits for requests in more slots."""
        if len(waiting) >= self._config.minimum_slot_utilization * slots:
            return False
        due = min(sequence.jobs[0].arrived_ns for sequence in waiting) + self._delay_ns
        self._wake_by(due)
        return now < due
