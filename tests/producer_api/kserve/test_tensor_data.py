"""Tensors as JSON and as bytes; numpy is the judge of the bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer_api.kserve.tensor_data import CODES, from_json, items_of, pack_items, to_json
from shared.errors import InvalidRequest
from shared.protocol import DATA_TYPES, Tensor
from workers.predictors.interface import NUMPY_TYPES

JSON_TYPES = [*CODES, "BYTES"]
INTEGERS = [each for each in CODES if "INT" in each]
SHAPES = [(), (1,), (4,), (2, 2), (2, 1, 2), (0,), (2, 0)]


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(st.characters(codec="utf-8"), max_size=8)
    if datatype in INTEGERS:
        info = np.iinfo(NUMPY_TYPES[datatype])
        return st.integers(int(info.min), int(info.max))
    return st.floats(width=32 if datatype == "FP32" else 64, allow_nan=False)  # JSON has one NaN only


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[Any]]:
    datatype, shape = draw(st.sampled_from(JSON_TYPES)), draw(st.sampled_from(SHAPES))
    size = int(np.prod(shape))
    return datatype, shape, draw(st.lists(values_of(datatype), min_size=size, max_size=size))


def nested(shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Return the data as nested lists."""
    if len(shape) <= 1:
        return data
    step = len(data) // shape[0]
    return [nested(shape[1:], data[i * step : (i + 1) * step]) for i in range(shape[0])]


@given(given=tensors())
def test_json_data_survive_a_round_trip(given: tuple[str, tuple[int, ...], list[Any]]) -> None:
    datatype, shape, data = given
    tensor = from_json("x", datatype, shape, data)
    assert tensor == from_json("x", datatype, shape, nested(shape, data))
    expected = (
        [text.encode() for text in data] if datatype == "BYTES" else np.array(data, NUMPY_TYPES[datatype]).tobytes()
    )
    assert (items_of(tensor.data) if datatype == "BYTES" else tensor.data) == expected
    written = json.loads(msgspec.json.encode(to_json(tensor)))
    assert from_json("x", datatype, shape, written) == tensor


def test_numbers_that_are_not_finite_are_written_as_triton_does() -> None:
    tensor = from_json("x", "FP32", [3], [float("nan"), float("inf"), float("-inf")])
    assert msgspec.json.encode(to_json(tensor)) == b"[NaN, Infinity, -Infinity]"


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_outside_of_the_range_are_refused(datatype: str) -> None:
    info = np.iinfo(NUMPY_TYPES[datatype])
    from_json("x", datatype, [2], [int(info.min), int(info.max)])
    for wrong in (int(info.min) - 1, int(info.max) + 1, 2**70):
        with pytest.raises(InvalidRequest, match=f"input x are out of the range of {datatype}"):
            from_json("x", datatype, [1], [wrong])


@pytest.mark.parametrize(("datatype", "wrong"), [("FP32", 1e39), ("FP64", 10**400)])
def test_numbers_outside_of_the_range_are_refused(datatype: str, wrong: float) -> None:
    with pytest.raises(InvalidRequest, match=f"out of the range of {datatype}"):
        from_json("x", datatype, [1], [wrong])


@pytest.mark.parametrize(
    ("datatype", "wrong"),
    [
        *((each, value) for each in INTEGERS for value in (1.0, True, "1", None, {})),
        *(("BOOL", value) for value in (1, 0.0, "true", None)),
        *((each, value) for each in ("FP32", "FP64") for value in (True, "1", None, {})),
        *(("BYTES", value) for value in (1, True, None, {})),
    ],
)
def test_items_of_another_type_are_refused(datatype: str, wrong: object) -> None:
    with pytest.raises(InvalidRequest, match=rf"input x must be .* for {datatype}") as refusal:
        from_json("x", datatype, [1], [wrong])
    assert refusal.value.param == "x"


def test_lists_of_different_depths_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="nested to one depth"):
        from_json("x", "FP32", [3], [1, [2, 3]])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_json(datatype: str) -> None:
    with pytest.raises(InvalidRequest, match=f"input x of {datatype} must be sent as binary data"):
        from_json("x", datatype, [1], [1.0])
    with pytest.raises(InvalidRequest, match=f"output x of {datatype} must be requested as binary data"):
        to_json(Tensor("x", datatype, (1,), b"\0\0"))


def test_bytes_that_are_not_utf8_have_no_json() -> None:
    with pytest.raises(InvalidRequest, match="output x is not UTF-8"):
        to_json(Tensor("x", "BYTES", (1,), pack_items([b"\xff"])))


def test_all_types_are_covered() -> None:
    assert {*JSON_TYPES, "FP16", "BF16"} == set(DATA_TYPES)
