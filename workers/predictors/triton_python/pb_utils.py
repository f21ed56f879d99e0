"""The module `triton_python_backend_utils` of models, with the names and arguments of Triton's python backend."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from workers.predictors.interface import Array

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    **{"TYPE_BOOL": bool, "TYPE_STRING": np.object_},
    **{"TYPE_UINT8": np.uint8, "TYPE_UINT16": np.uint16, "TYPE_UINT32": np.uint32, "TYPE_UINT64": np.uint64},
    **{"TYPE_INT8": np.int8, "TYPE_INT16": np.int16, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64},
    **{"TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64},
}
_NUMBERS = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
)
_TYPES = (*_NUMBERS, "STRING")  # in the order of their numbers, which begin with 1

Item = TypeVar("Item")


class TritonModelException(Exception):
    """An error of the model."""

    def message(self) -> str:
        return str(self)


class TritonError(TritonModelException):
    """An error in a response, with a code."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str = "", code: int = INTERNAL) -> None:
        super().__init__(message)
        self._code = code

    def code(self) -> int:
        return self._code


class Tensor:
    """A tensor in the memory of the CPU."""

    def __init__(self, name: str, numpy_array: Array) -> None:
        if not isinstance(numpy_array, np.ndarray) or numpy_array.dtype.kind in "UV":
            raise TritonModelException(f"the array of tensor {name} must be of numpy, texts of the type np.object_")
        self._name = name
        self._array = numpy_array

    @classmethod
    def from_dlpack(cls, name: str, tensor: Any) -> Tensor:
        return cls(name, np.from_dlpack(tensor.cpu() if hasattr(tensor, "cpu") else tensor))

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array

    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    def triton_dtype(self) -> int | None:
        return numpy_to_triton_type(self._array.dtype)

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        return self._array.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class InferenceResponse:
    """Outputs or an error."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None, parameters: Any = None
    ) -> None:
        self._outputs = list(output_tensors)
        self._error = error
        self._parameters = parameters

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> Any:
        return self._parameters


class ResponseSender(Protocol):
    """Sends the responses of a request, from any thread."""

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the last one with the flag TRITONSERVER_RESPONSE_COMPLETE_FINAL."""

    def is_cancelled(self) -> bool:
        """Return whether further responses are discarded."""


class InferenceRequest:
    """A request, or several ones that were joined along the batch dimension."""

    def __init__(
        self,
        *,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        parameters: Mapping[str, Any] | None = None,
        sender: ResponseSender | None = None,
        **_: Any,
    ) -> None:
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model_name = model_name
        self._flags = flags
        self._timeout = timeout
        self._parameters = dict(parameters or {})
        self._sender = sender

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def model_name(self) -> str:
        return self._model_name

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        return self._timeout

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def get_response_sender(self) -> ResponseSender:
        if self._sender is None:
            raise TritonModelException("only a request that the model was given has a response sender")
        return self._sender

    def is_cancelled(self) -> bool:
        return self._sender is not None and self._sender.is_cancelled()

    def exec(self, *_: Any, **__: Any) -> NoReturn:
        raise TritonModelException("models cannot call other models: use an ensemble")

    async_exec = exec


class Logger:
    """Writes to the worker's log, by the output of the process."""

    @staticmethod
    def log(message: str, level: Any = None) -> None:
        sys.stdout.write(f"{message}\n")

    log_info = log_warn = log_error = log_verbose = log


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return _by_name(inference_request.inputs(), name, Tensor.name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return _by_name(inference_response.output_tensors(), name, Tensor.name)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return _by_name(model_config.get("input", []), name, lambda each: each["name"])


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return _by_name(model_config.get("output", []), name, lambda each: each["name"])


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(triton_type_string: str) -> Any:
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    return TRITON_STRING_TO_NUMPY[f"TYPE_{_TYPES[data_type - 1]}"]


def numpy_to_triton_type(data_type: Any) -> int | None:
    wanted = np.dtype(data_type)
    if wanted.kind in "OS":
        return len(_TYPES)
    found = [np.dtype(TRITON_STRING_TO_NUMPY[f"TYPE_{each}"]) for each in _NUMBERS]
    return found.index(wanted) + 1 if wanted in found else None


def _by_name(items: Sequence[Item], name: str, name_of: Callable[[Item], str]) -> Item | None:
    return next((each for each in items if name_of(each) == name), None)
