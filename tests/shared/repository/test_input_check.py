"""Checks of an inference request against the description of its model."""

from __future__ import annotations

import pytest

from shared.errors import InvalidRequest
from shared.protocol import Infer, SequenceStep, Tensor
from shared.repository.input_check import check_inputs
from shared.repository.spec import ModelSpec, SequenceBatching, TensorSpec

A = TensorSpec(name="a", datatype="FP32", dims=(2, -1))
B = TensorSpec(name="b", datatype="BYTES", dims=(1,), optional=True)
OUT = TensorSpec(name="out", datatype="FP32", dims=(1,))
PLAIN = ModelSpec(name="m", inputs=(A, B), outputs=(OUT,))
BATCHED = ModelSpec(name="m", inputs=(A, B), outputs=(OUT,), max_batch_size=4)


def fp32(*shape: int, name: str = "a") -> Tensor:
    return Tensor(name, "FP32", shape, b"")


def text(*shape: int) -> Tensor:
    return Tensor("b", "BYTES", shape, b"")


def test_fitting_inputs_are_accepted() -> None:
    check_inputs(Infer(inputs=(fp32(2, 9),), outputs=("out",)), PLAIN)
    check_inputs(Infer(inputs=(text(1), fp32(2, 0))), PLAIN)
    check_inputs(Infer(inputs=(fp32(4, 2, 9), text(4, 1))), BATCHED)


def test_an_incomplete_description_accepts_any_tensors() -> None:
    check_inputs(Infer(inputs=(fp32(5),), outputs=("anything",)), ModelSpec(name="m"))


@pytest.mark.parametrize(
    ("spec", "inputs", "param", "reason"),
    [
        (PLAIN, (text(1),), "a", "input a of model m is required"),
        (PLAIN, (fp32(2, 1), fp32(1, name="c")), "c", "unexpected input 'c' for model m; it has a, b"),
        (PLAIN, (Tensor("a", "FP64", (2, 1), b""),), "a", "must have the datatype FP32, got FP64"),
        (PLAIN, (fp32(3, 1),), "a", r"must have the shape \[2, -1\], got \[3, 1\]"),
        (PLAIN, (fp32(2),), "a", r"must have the shape \[2, -1\], got \[2\]"),
        (BATCHED, (fp32(2, 1),), "a", r"must have the shape \[-1, 2, -1\], with the batch first"),
        (BATCHED, (fp32(5, 2, 1),), "a", "batch size between 1 and 4, got 5"),
        (BATCHED, (fp32(0, 2, 1),), "a", "batch size between 1 and 4, got 0"),
        (BATCHED, (fp32(2, 2, 1), text(3, 1)), "b", "batch size of the other inputs, 2, got 3"),
    ],
)
def test_what_does_not_fit_is_named(spec: ModelSpec, inputs: tuple[Tensor, ...], param: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        check_inputs(Infer(inputs=inputs), spec)
    assert refusal.value.param == param


def test_an_unknown_output_is_named() -> None:
    with pytest.raises(InvalidRequest, match="unexpected output 'x' for model m; it has out"):
        check_inputs(Infer(inputs=(fp32(2, 1),), outputs=("out", "x")), PLAIN)


def test_a_model_of_sequences_needs_one() -> None:
    spec = ModelSpec(name="m", inputs=(A,), sequence_batching=SequenceBatching())
    check_inputs(Infer(inputs=(fp32(2, 1),), sequence=SequenceStep(7)), spec)
    with pytest.raises(InvalidRequest, match="needs a sequence_id"):
        check_inputs(Infer(inputs=(fp32(2, 1),)), spec)
