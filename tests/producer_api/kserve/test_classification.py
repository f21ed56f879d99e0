"""Triton's classification extension."""

from __future__ import annotations

import struct

import pytest

from producer_api.kserve.classification import classify
from producer_api.kserve.tensor_data import items_of
from shared.errors import InvalidRequest
from shared.protocol import Tensor


def fp32(shape: tuple[int, ...], *values: float) -> Tensor:
    return Tensor("out", "FP32", shape, struct.pack(f"<{len(values)}f", *values))


def test_each_row_of_a_batch_has_its_best_classes() -> None:
    found = classify(fp32((2, 3), 0.25, 0.5, 0.125, 3, 1, 2), 2, batched=True, labels=("cat", "dog"))
    assert (found.datatype, found.shape) == ("BYTES", (2, 2))
    assert items_of(found.data) == [b"0.500000:1:dog", b"0.250000:0:cat", b"3.000000:0:cat", b"2.000000:2"]


def test_a_whole_tensor_is_one_row_without_batches() -> None:
    found = classify(Tensor("out", "INT8", (2, 2), bytes([1, 4, 3, 2])), 9, batched=False, labels=())
    assert (found.shape, items_of(found.data)) == ((4,), [b"4:1", b"3:2", b"2:3", b"1:0"])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_tensor_has_no_classes(shape: tuple[int, ...]) -> None:
    assert classify(fp32(shape), 2, batched=True, labels=()).data == b""


@pytest.mark.parametrize("datatype", ["BYTES", "FP16", "BF16", "BOOL"])
def test_other_types_cannot_be_classified(datatype: str) -> None:
    with pytest.raises(InvalidRequest, match=f"output out of {datatype} cannot be classified"):
        classify(Tensor("out", datatype, (0,), b""), 1, batched=False, labels=())
