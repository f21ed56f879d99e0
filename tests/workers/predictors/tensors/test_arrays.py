"""Conversion of tensors to arrays and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol import ITEM_BYTES, Tensor
from workers.predictors.interface import NUMPY_TYPES
from workers.predictors.tensors.arrays import read_items, to_array, to_tensor, zeros


@pytest.mark.parametrize("datatype", ITEM_BYTES)
def test_a_tensor_survives_the_way_through_an_array(datatype: Any) -> None:
    data = np.array([[0, 1, 1], [1, 0, 1]]).astype(NUMPY_TYPES[datatype])
    tensor = to_tensor("x", datatype, data)
    assert (tensor.shape, len(tensor.data)) == ((2, 3), 6 * ITEM_BYTES[datatype])
    array = to_array(tensor)
    assert array.dtype == NUMPY_TYPES[datatype]
    assert array.tolist() == data.tolist()
    assert to_tensor("x", datatype, array) == tensor


def test_numbers_are_little_endian() -> None:
    assert to_tensor("x", "INT32", np.array([258], ">i4")).data == b"\x02\x01\0\0"
    assert to_array(Tensor("x", "UINT16", (1,), b"\x02\x01")).tolist() == [258]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_keep_their_items(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    tensor = to_tensor("x", "BYTES", array)
    assert to_array(tensor).tolist() == items
    assert len(tensor.data) == sum(4 + len(item) for item in items)


def test_texts_become_bytes() -> None:
    expected = b"\x03\0\0\0a\xc3\xa4\x01\0\0\0b"
    assert to_tensor("x", "BYTES", np.array([["aä"], ["b"]])).data == expected
    assert to_tensor("x", "BYTES", np.array(["aä".encode(), b"b"])).data == expected


@pytest.mark.parametrize(("datatype", "data"), [("BYTES", b"\x05\0\0\0ab"), ("FP32", b"\0\0\0")])
def test_incomplete_items_are_refused(datatype: Any, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"BYTES|buffer"):
        read_items(datatype, data)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (1.00390625, 0x3F80),  # half way: to the even one
        (1.01171875, 0x3F82),  # half way: to the even one
        (1.004, 0x3F81),
        (float("inf"), 0x7F80),
        (3.4e38, 0x7F80),
        (-2.0, 0xC000),
    ],
)
def test_bf16_rounds_to_nearest_even(value: float, bits: int) -> None:
    data = to_tensor("x", "BF16", np.array([value], np.float32)).data
    assert int.from_bytes(data, "little") == bits


def test_bf16_keeps_what_is_not_a_number() -> None:
    pattern = np.array([0x7F800001], np.uint32).view(np.float32)  # rounding its bits would give infinity
    assert np.isnan(to_array(to_tensor("x", "BF16", pattern))).all()


def test_arrays_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        to_tensor("x", "FP32", np.array([1.5]))
    with pytest.raises(TypeError, match="int"):
        to_tensor("x", "BYTES", np.array([1], dtype=object))


def test_zeros_have_the_type() -> None:
    assert zeros("BYTES", (2,)).tolist() == [b"", b""]
    assert zeros("INT16", (1, 2)).dtype == np.int16
