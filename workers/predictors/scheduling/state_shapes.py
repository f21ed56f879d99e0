"""Shapes of the state of sequences, which must be equal within a batch."""

from __future__ import annotations

from collections.abc import Hashable

from shared.repository.spec import SequenceBatching, SequenceState
from workers.predictors.scheduling.job import Sequence
from workers.predictors.tensors.shapes import VARIABLE


class StateShapes:
    """Decides which sequences may be executed together."""

    def __init__(self, config: SequenceBatching) -> None:
        self._variable = [state for state in config.state if VARIABLE in state.dims]

    def joins(self, sequence: Sequence) -> Hashable:
        """Return a value that is equal for sequences whose next requests may be joined."""
        job = sequence.jobs[0]
        if not self._variable:
            return job.checked.joins
        fresh = job.starts_sequence or not sequence.state
        shapes = (initial_dims(s) if fresh else sequence.state[s.input_name].shape[1:] for s in self._variable)
        return job.checked.joins, tuple(shapes)


def initial_dims(state: SequenceState) -> tuple[int, ...]:
    """Return the dimensions of the state of a sequence that begins; as in Triton, variable ones are 1."""
    return tuple(1 if dim == VARIABLE else dim for dim in state.dims)
