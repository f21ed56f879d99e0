"""The inputs of a sequence's requests that the model gets beside those of the client: controls and state."""

from __future__ import annotations

import numpy as np

from shared.errors import InvalidRequest
from shared.protocol import SequenceStep
from shared.repository.spec import ModelSpec, SequenceControl
from workers.predictors.interface import NUMPY_TYPES, Array, Arrays
from workers.predictors.scheduling.job import Row
from workers.predictors.scheduling.state_shapes import initial_dims
from workers.predictors.tensors.arrays import zeros

NOT_READY = SequenceStep(0)


class SequenceTensors:
    """Makes the controls and the state inputs of one model, and keeps its state outputs."""

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.sequence_batching is not None
        self._controls = spec.sequence_batching.control_input
        self._states = spec.sequence_batching.state
        self._batch = (1,) if spec.max_batch_size else ()
        self.output_names = tuple(state.output_name for state in self._states)

    def inputs(self, row: Row) -> dict[str, Array]:
        """Return the controls and the state of one row. Raises InvalidRequest for an id of the wrong kind."""
        step = NOT_READY if row.job is None else row.job.work.sequence
        assert step is not None
        arrays = {each.name: self._control(each, step, ready=row.job is not None) for each in self._controls}
        kept = row.sequence.state if row.sequence is not None else {}
        for state in self._states:
            found = kept.get(state.input_name)
            initial = (*self._batch, *initial_dims(state))
            arrays[state.input_name] = zeros(state.datatype, initial) if found is None else found
        return arrays

    def keep(self, row: Row, outputs: Arrays) -> None:
        """Keep the state outputs of one row for the next request of its sequence."""
        if row.sequence is not None:
            row.sequence.state = {
                state.input_name: np.array(outputs[state.output_name])
                for state in self._states
                if state.output_name in outputs
            }

    def _control(self, control: SequenceControl, step: SequenceStep, *, ready: bool) -> Array:
        if control.kind == "CONTROL_SEQUENCE_CORRID":
            value: object = _id_value(control, step.id)
        else:
            truths = {
                "CONTROL_SEQUENCE_START": step.start,
                "CONTROL_SEQUENCE_READY": ready,
                "CONTROL_SEQUENCE_END": step.end,
            }
            value = (control.false_true or (0, 1))[truths[control.kind]]
        array = np.empty((*self._batch, 1), NUMPY_TYPES[control.datatype])
        array[...] = value
        return array


def _id_value(control: SequenceControl, sequence_id: int | str) -> object:
    """Return an id as the control carries it: a text as bytes; an integer in 32 bits loses its higher ones."""
    if control.datatype == "BYTES":
        return str(sequence_id).encode()
    if isinstance(sequence_id, str):
        raise InvalidRequest(
            f"the sequence id must be a number: input {control.name} takes it", param="sequence_id"
        )
    dtype = NUMPY_TYPES[control.datatype]
    low = sequence_id & (2 ** (8 * dtype.itemsize) - 1)
    return np.array(low, f"<u{dtype.itemsize}").view(dtype)
