"""Tests of the comparison of results."""

from __future__ import annotations

import struct

import pytest

from shared.protocol import DataType, Result, Tensor
from shared.repository.traffic.agreement import MAX_ITEMS, agreement_of
from shared.repository.traffic.pairs import Agreement


def tensor(*numbers: float, shape: tuple[int, ...] | None = None, name: str = "y") -> Tensor:
    return Tensor(name, "FP32", shape or (len(numbers),), struct.pack(f"<{len(numbers)}f", *numbers))


def compared(first: Tensor, second: Tensor) -> Agreement:
    return agreement_of(Result(tensors=(first,)), Result(tensors=(second,)))


def test_same_tensors_agree_exactly() -> None:
    assert compared(tensor(0.25, 0.75), tensor(0.25, 0.75)) == Agreement(True, 0.0, True)


def test_numbers_are_compared_with_their_labels() -> None:
    assert compared(tensor(0.25, 0.75), tensor(0.5, 0.5625)) == Agreement(False, 0.25, True)
    assert compared(tensor(0.25, 0.75), tensor(0.5, 0.25)) == Agreement(False, 0.5, False)
    rows = compared(tensor(0, 1, 1, 0, shape=(2, 2)), tensor(0, 1, 0, 1, shape=(2, 2)))
    assert rows == Agreement(False, 1.0, False)


@pytest.mark.parametrize(
    ("datatype", "first", "second", "difference"),
    [
        ("INT64", struct.pack("<q", -3), struct.pack("<q", 4), 7.0),
        ("UINT8", b"\x01", b"\xff", 254.0),
        ("FP16", struct.pack("<e", 1.5), struct.pack("<e", 1.0), 0.5),
        ("BF16", b"\x80\x3f", b"\x00\x40", 1.0),
        ("BOOL", b"\x00", b"\x01", 1.0),
    ],
)
def test_every_type_of_number_is_compared(
    datatype: DataType, first: bytes, second: bytes, difference: float
) -> None:
    found = compared(Tensor("y", datatype, (1,), first), Tensor("y", datatype, (1,), second))
    assert found == Agreement(False, difference)


def test_texts_and_other_shapes_have_no_difference() -> None:
    text = Tensor("y", "BYTES", (1,), b"\x01\0\0\0a")
    assert compared(text, text) == Agreement(True)
    assert compared(text, tensor(1)) == Agreement(False)
    assert compared(tensor(1, 2), tensor(1, 2, shape=(1, 2))) == Agreement(False)


def test_infinite_numbers_that_are_equal_agree() -> None:
    assert compared(tensor(float("inf")), tensor(float("inf"))).max_difference == 0.0
    assert compared(tensor(float("inf")), tensor(1.0)).max_difference is None


def test_other_outputs_are_no_agreement() -> None:
    first = Result(tensors=(tensor(1), tensor(2, name="z")))
    assert agreement_of(first, Result(tensors=(tensor(1),))) == Agreement(False, 0.0)


def test_large_tensors_are_compared_in_part() -> None:
    first = [0.0] * (MAX_ITEMS + 1)
    found = compared(tensor(*first), tensor(*first[:-1], 1.0))
    assert found == Agreement(False, 0.0)


def test_vectors_are_compared_as_numbers() -> None:
    first, second = struct.pack("<2f", 1, 2), struct.pack("<2f", 1, 2.5)
    found = agreement_of(Result(vectors=(first, first)), Result(vectors=(first, second)))
    assert (found.exact, found.max_difference) == (False, 0.5)


def test_texts_of_results_are_compared() -> None:
    assert agreement_of(Result(text="a"), Result(text="a")) == Agreement(True)
    assert agreement_of(Result(tokens=(1,)), Result(tokens=(2,))) == Agreement(False)
