"""Random requests for inference, valid ones and damaged ones, through each decoder of KServe's protocol.

A decoder must return tensors that agree with their shapes, or refuse the request with an error that is no server
error.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from producer_api.kserve.infer_body import header_length, parse, parse_raw
from producer_api.kserve.infer_response import check_forms
from producer_api.kserve.parameters import InferCall
from producer_api.kserve.tensor_data import CODES, items_of, pack_items
from producer_api.rpc.kserve import kserve_pb2 as pb
from producer_api.rpc.kserve.messages import CONTENTS, infer_call
from producer_api.rpc.requests import parse as parse_message
from shared.errors import HeadraceError, NotSupported
from shared.protocol import DATA_TYPES, DataType, Tensor
from shared.repository.input_check import check_inputs
from shared.repository.spec import ModelSpec, TensorSpec
from shared.validation.tensors import check_tensors
from workers.predictors.interface import NUMPY_TYPES

SPEC = ModelSpec(
    name="m",
    max_batch_size=4,
    inputs=tuple(TensorSpec(name=each, datatype=each, dims=(-1,), optional=True) for each in DATA_TYPES),
    outputs=(TensorSpec(name="out", datatype="FP32", dims=(-1,)),),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "INT32", "\0", "ä" * 200, "NaN", [], [[]], [[1], [2]], [1, [2]], {}, {"a": 1}),
    *([None], ["x"], [0.5], [True], "shared_memory_region", {"binary_data_size": 4}, [[[[[[[1]]]]]]]),
)
NAMES = (
    *("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data", "binary_data_size", "priority"),
    *("timeout", "sequence_id", "sequence_start", "classification", "binary_data", "triton_x", "other"),
)


def fuzz(decoder: str, *, cases: int, seed: int) -> dict[str, int]:
    """Run `cases` through a decoder and count their outcomes. Raises AssertionError for a wrong one."""
    make = DECODERS[decoder]
    outcomes = {"accepted": 0, "refused": 0}
    for number in range(cases):
        rng = random.Random(f"{decoder}:{seed}:{number}")
        try:
            _check(make(rng))
            outcomes["accepted"] += 1
        except HeadraceError as error:
            assert error.status < 500 or isinstance(error, NotSupported), (decoder, seed, number, error.message)
            assert error.message, (decoder, seed, number)
            outcomes["refused"] += 1
    return outcomes


def _check(call: InferCall) -> None:
    """Check a decoded request as admission does, then its tensors as arrays."""
    check_tensors(call.work)
    check_inputs(call.work, SPEC)
    check_forms(call, SPEC)
    for tensor in call.work.inputs:
        if tensor.datatype == "BYTES":
            assert len(items_of(tensor.data)) == tensor.size
        else:
            dtype = np.dtype("<u2") if tensor.datatype == "BF16" else NUMPY_TYPES[tensor.datatype]
            np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def _from_json(rng: random.Random) -> InferCall:
    tensors = _tensors(rng)
    body = _body(rng, [{**_head(each), "data": _json_data(rng, each)} for each in tensors])
    data = _damaged(rng, json.dumps(_mutated(rng, body)).encode())
    return parse(data, len(data), "", strict_fields=rng.random() < 0.2)[0]


def _from_binary(rng: random.Random) -> InferCall:
    if rng.random() < 0.1:
        return parse_raw(
            rng.randbytes(rng.randint(0, 9)), ModelSpec(name="m", inputs=(rng.choice(SPEC.inputs),)), ""
        )
    tensors = _tensors(rng)
    body = _body(rng, [{**_head(each), "parameters": {"binary_data_size": len(each.data)}} for each in tensors])
    head = json.dumps(_mutated(rng, body)).encode()
    data = _damaged(rng, head + b"".join(each.data for each in tensors))
    length = str(len(head)) if rng.random() < 0.9 else rng.choice(("0", "-1", "x", "1", str(len(data) + 1), "١"))
    return parse(data, header_length(length, len(data)), "", strict_fields=False)[0]


def _from_message(rng: random.Random) -> InferCall:
    message = pb.ModelInferRequest(model_name="m", id=rng.choice(("", "7")))
    raw = rng.random() < 0.5
    for each in _tensors(rng):
        given = message.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if raw or each.datatype not in CONTENTS:
            message.raw_input_contents.append(each.data)
        else:
            field = CONTENTS[each.datatype if rng.random() < 0.9 else rng.choice(tuple(CONTENTS))]
            _fill(getattr(given.contents, field), each)
    for _ in range(rng.randint(0, 2)):
        parameter = message.parameters[rng.choice(NAMES)]
        field = rng.choice(("bool_param", "int64_param", "string_param", "double_param", "uint64_param"))
        setattr(parameter, field, {"bool_param": True, "string_param": "x"}.get(field, rng.randint(0, 5)))
    if rng.random() < 0.3:
        message.outputs.add(name=rng.choice(("out", "x")))
    data = _damaged(rng, message.SerializeToString())
    return infer_call(parse_message(data, pb.ModelInferRequest, strict_fields=rng.random() < 0.2))


DECODERS: dict[str, Callable[[random.Random], InferCall]] = {
    "JSON": _from_json,
    "binary": _from_binary,
    "gRPC": _from_message,
}


def _tensors(rng: random.Random) -> list[Tensor]:
    """Return inputs of SPEC, of different types and mostly of the same batch size."""
    batch = rng.randint(1, 4)
    chosen = rng.sample(DATA_TYPES, rng.choice((0, 1, 1, 2, 2, 3)))
    return [_tensor(rng, datatype, batch if rng.random() < 0.95 else rng.randint(0, 5)) for datatype in chosen]


def _tensor(rng: random.Random, datatype: DataType, batch: int) -> Tensor:
    shape = (batch, rng.randint(0, 3))
    size = shape[0] * shape[1]
    if datatype == "BYTES":
        data = pack_items([rng.randbytes(rng.randint(0, 3)) for _ in range(size)])
    elif datatype == "BOOL":
        data = bytes(rng.randint(0, 1) for _ in range(size))
    else:
        data = rng.randbytes(size * NUMPY_TYPES[datatype].itemsize if datatype != "BF16" else size * 2)
    return Tensor(datatype, datatype, shape, data)


def _head(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _items(tensor: Tensor) -> list[Any]:
    if tensor.datatype == "BYTES":
        return items_of(tensor.data)
    return list(struct.unpack(f"<{tensor.size}{CODES.get(tensor.datatype, 'e')}", tensor.data))


def _json_data(rng: random.Random, tensor: Tensor) -> list[Any]:
    items = [each.decode("latin-1") if isinstance(each, bytes) else each for each in _items(tensor)]
    width = tensor.shape[1]
    if rng.random() < 0.5 or not width:
        return items
    return [items[i : i + width] for i in range(0, len(items), width)]


def _fill(field: Any, tensor: Tensor) -> None:
    with suppress(TypeError, ValueError, OverflowError):  # items that this field cannot have: it stays empty
        field.extend(_items(tensor))


def _body(rng: random.Random, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {"inputs": inputs}
    if rng.random() < 0.3:
        body["outputs"] = [{"name": "out", "parameters": {"binary_data": rng.random() < 0.5}}]
    if rng.random() < 0.3:
        body["parameters"] = {rng.choice(NAMES): rng.choice(ODD)}
    return body


def _mutated(rng: random.Random, value: Any) -> Any:
    """Return the value with, now and then, a part replaced, added or left out."""
    if rng.random() < 0.01:
        return rng.choice(ODD)
    if isinstance(value, dict):
        found = {name: _mutated(rng, each) for name, each in value.items() if rng.random() > 0.01}
        return found | ({rng.choice(NAMES): rng.choice(ODD)} if rng.random() < 0.05 else {})
    if isinstance(value, list):
        return [_mutated(rng, each) for each in value if rng.random() > 0.01]
    return value


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes with, now and then, some replaced, inserted or cut off."""
    if rng.random() > 0.25 or not data:
        return data
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.randint(0, 4))
    match rng.randrange(3):
        case 0:
            return data[:begin]
        case 1:
            return data[:begin] + rng.randbytes(end - begin) + data[end:]
        case _:
            return data[:begin] + rng.randbytes(rng.randint(0, 4)) + data[begin:]
