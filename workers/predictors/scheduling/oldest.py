"""The strategy `oldest` of sequence batching: the oldest requests of an instance's sequences form its batches."""

from __future__ import annotations

from collections.abc import Hashable

from shared.repository.spec import ModelSpec
from workers.predictors.scheduling.dynamic import BatchSizes
from workers.predictors.scheduling.job import Sequence
from workers.predictors.scheduling.sequences import SequenceBatcher
from workers.predictors.scheduling.state_shapes import StateShapes


class OldestBatcher(SequenceBatcher):
    """Sequences have no slots. An instance keeps `max_candidate_sequences` of them."""

    def __init__(self, spec: ModelSpec, instances: int) -> None:
        assert spec.sequence_batching is not None
        largest = max(1, spec.max_batch_size)
        config = spec.sequence_batching
        super().__init__(spec, instances, config.max_candidate_sequences or largest)
        self._sizes = BatchSizes(largest, config.preferred_batch_size, config.max_queue_delay_microseconds)
        self._shapes = StateShapes(config)

    def _choose(self, instance: int, now: int) -> list[tuple[Sequence | None, bool]]:
        waiting = [sequence for sequence in self._places[instance] if sequence is not None and sequence.ready]
        waiting.sort(key=lambda sequence: sequence.jobs[0].arrived_ns)
        groups: dict[Hashable, list[Sequence]] = {}
        for sequence in waiting:
            groups.setdefault(self._shapes.joins(sequence), []).append(sequence)
        for sequences in groups.values():
            jobs = [sequence.jobs[0] for sequence in sequences]
            if count := self._sizes.count(jobs, now):
                return [(sequence, True) for sequence in sequences[:count]]
            self._wake_by(self._sizes.due_at(jobs))
        return []
