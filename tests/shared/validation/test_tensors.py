"""Checks of tensors that need no description of the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.protocol import DATA_TYPES, ITEM_BYTES, Infer, Tensor
from shared.validation.tensors import LENGTH, MAX_DIMENSIONS, MAX_ITEMS, MAX_TENSORS, check_tensors


def items(*texts: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)


def check(*tensors: Tensor) -> None:
    check_tensors(Infer(inputs=tensors))


@pytest.mark.parametrize("datatype", DATA_TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (3, 0, 2)])
def test_data_of_the_shape_are_accepted(datatype: str, shape: tuple[int, ...]) -> None:
    tensor = Tensor("x", datatype, shape, b"")
    data = items(*[b"ab"] * tensor.size) if datatype == "BYTES" else bytes(tensor.size * ITEM_BYTES[datatype])
    check(Tensor("x", datatype, shape, data))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (Tensor("x", "FP32", (2,), bytes(7)), r"x must have 8 bytes for its shape \[2\] of FP32, got 7"),
        (Tensor("x", "FP32", (2,), bytes(9)), "must have 8 bytes"),
        (Tensor("x", "BOOL", (), b""), "must have 1 bytes"),
        (Tensor("x", "FP32", (-1,), b""), "sizes of at least 0"),
        (Tensor("x", "FP32", (1,) * (MAX_DIMENSIONS + 1), bytes(4)), "at most 32 sizes"),
        (Tensor("x", "FP32", (2**31, 2**31, 0), b""), "too large"),
        (Tensor("x", "BYTES", (2**40, 2**40, 0), b""), "too large"),
        (Tensor("x", "BYTES", (1,), b""), "1 items of BYTES"),
        (Tensor("x", "BYTES", (1,), b"\5\0\0\0abc"), "1 items of BYTES"),
        (Tensor("x", "BYTES", (1,), items(b"abc") + b"d"), "1 items of BYTES"),
        (Tensor("x", "BYTES", (2,), items(b"abc") + b"\0\0"), "2 items of BYTES"),
        (Tensor("x", "BYTES", (0,), items(b"")), "0 items of BYTES"),
        (Tensor("x", "BYTES", (MAX_ITEMS + 1,), b""), "at most 100000 items"),
    ],
)
def test_contradictions_name_the_input(tensor: Tensor, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        check(Tensor("a", "BOOL", (1,), b"\1"), tensor)
    assert refusal.value.param == "x"


def test_a_request_has_inputs_of_different_names() -> None:
    one = Tensor("x", "BOOL", (), b"\0")
    for wrong in ((), (one, one), tuple(Tensor(str(i), "BOOL", (), b"\0") for i in range(MAX_TENSORS + 1))):
        with pytest.raises(InvalidRequest) as refusal:
            check(*wrong)
        assert refusal.value.param == "inputs"


@given(datatype=st.sampled_from(DATA_TYPES), shape=st.lists(st.integers(-1, 5), max_size=4), data=st.binary())
def test_any_bytes_are_checked_or_refused(datatype: str, shape: list[int], data: bytes) -> None:
    tensor = Tensor("x", datatype, tuple(shape), data)
    try:
        check(tensor)
    except InvalidRequest:
        return
    assert datatype == "BYTES" or len(data) == tensor.size * ITEM_BYTES[datatype]
