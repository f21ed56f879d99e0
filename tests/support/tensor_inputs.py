"""Inputs of models of tensors, as tritonclient sends them over gRPC."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import InferInput


def given(name: str, array: np.ndarray, datatype: str = "INT32") -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def add_sub() -> list[InferInput]:
    return [given("INPUT0", ints(1, 2)), given("INPUT1", ints(10, 20))]
