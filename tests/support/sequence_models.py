"""Models that keep state between the requests of a sequence."""

from __future__ import annotations

from typing import Any

from shared.protocol import Infer, SequenceStep
from shared.repository.spec import ControlKind, ModelSpec, SequenceBatching, SequenceControl, SequenceState
from tests.support.predictors import Doubler, floats, infer, model
from workers.predictors.interface import Arrays, Execution

TRUTHS: dict[str, ControlKind] = {
    "START": "CONTROL_SEQUENCE_START",
    "READY": "CONTROL_SEQUENCE_READY",
    "END": "CONTROL_SEQUENCE_END",
}
CONTROLS = (
    *(SequenceControl(name=name, kind=kind, datatype="INT32", false_true=(0, 1)) for name, kind in TRUTHS.items()),
    SequenceControl(name="ID", kind="CONTROL_SEQUENCE_CORRID", datatype="UINT64"),
)
SUM = SequenceState(input_name="SUM", output_name="NEW_SUM", datatype="FP32", dims=(1,))


def sequence_model(max_batch_size: int = 4, **fields: Any) -> ModelSpec:
    """Return the description of a model that adds up the values of each sequence."""
    batching = {"control_input": CONTROLS, "state": (SUM,), **fields}
    return model(max_batch_size=max_batch_size, sequence_batching=SequenceBatching(**batching))


def step(sequence: int | str, value: float, **flags: bool) -> Infer:
    return infer(floats([value]), sequence=SequenceStep(sequence, **flags))


class Adder(Doubler):
    """Predictor whose output Y is the sum of a sequence's values so far."""

    def predict(self, call: Execution) -> Arrays:
        super().predict(call)
        total = call.inputs["SUM"] + call.inputs["X"]
        return {"Y": total, "NEW_SUM": total}

    def controls(self, execution: int) -> dict[str, list[int]]:
        """Return the controls of an execution, a value for each slot."""
        inputs = self.calls[execution].inputs
        return {name: inputs[name].ravel().tolist() for name in (*TRUTHS, "ID")}
