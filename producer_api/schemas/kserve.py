"""Bodies of KServe's protocol (v2), with Triton's extensions.

Reference: kserve/open-inference-protocol; triton-inference-server/server, docs/protocol.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from shared.protocol import DataType, Parameter
from shared.schemas.base import Body
from shared.schemas.openapi_bounds import Items, Short
from shared.validation.tensors import MAX_DIMENSIONS, MAX_ITEMS, MAX_SIZE, MAX_TENSORS

MAX_PARAMETERS = 64  # of a request, or of one of its tensors
UNSET = msgspec.UNSET
Unset = msgspec.UnsetType

Parameters = Annotated[dict[str, bool | int | float | str], Field(max_length=MAX_PARAMETERS)]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]


class InferInput(Body):
    """An input. Its `data` is in JSON, or follows the JSON with `binary_data_size` bytes."""

    name: Short
    datatype: DataType
    shape: Annotated[Items[Size], Field(max_length=MAX_DIMENSIONS)]
    parameters: Parameters | None = None
    data: list[Any] | None = Field(None, description="nested or flat, in row-major order")


class InferRequestedOutput(Body):
    """An output that the response must have."""

    name: Short
    parameters: Parameters | None = Field(None, description="binary_data, classification")


class InferBody(Body):
    """Body of a request for inference."""

    id: Short | None = None
    parameters: Parameters | None = None
    inputs: Annotated[Items[InferInput], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[Items[InferRequestedOutput], Field(max_length=MAX_TENSORS)] | None = None


class IndexBody(Body):
    ready: bool | None = Field(None, description="only ready models")


class GenerateBody(Body):
    """Body of a request that generates. Further fields are parameters, or inputs of the model."""

    id: Short | None = None
    text_input: str | Annotated[Items[str], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="the prompt of a model that generates text, or an input of that name"
    )
    parameters: dict[str, Any] | None = Field(None, description="the same as further fields", max_length=256)


class ControlBody(Body):
    """Body of a request to load or unload a model."""

    parameters: dict[str, Any] | None = Field(
        None,
        description="config, a ModelConfig as JSON text; file:<version>/<name>, in base64; unload_dependents",
        max_length=256,
    )


class ServerMetadata(msgspec.Struct):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct):
    name: str
    datatype: DataType
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """Description of a model; `versions` are the ready ones."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelIndex(msgspec.Struct):
    """State of a version; a model without versions is listed once."""

    name: str
    version: str | Unset = UNSET
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"] | Unset = UNSET
    reason: str | Unset = UNSET


class OutputTensor(msgspec.Struct):
    name: str
    datatype: DataType
    shape: list[int]
    parameters: dict[str, int] | Unset = UNSET
    data: Any = UNSET


class InferResponse(msgspec.Struct):
    """Result of an inference; binary data follow the JSON, in the order of the outputs."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | Unset = UNSET
    parameters: dict[str, Parameter] | Unset = UNSET


class Duration(msgspec.Struct):
    """Sum of `count` durations, in nanoseconds."""

    count: int = 0
    ns: int = 0


class InferStatistics(msgspec.Struct):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(msgspec.Struct):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class MemoryUsage(msgspec.Struct):
    type: str
    id: int
    byte_size: int


class ModelStatistics(msgspec.Struct):
    """Statistics of one version; `last_inference` is in milliseconds since the epoch."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    response_stats: dict[str, Any]
    batch_stats: list[BatchStatistics]
    memory_usage: list[MemoryUsage]


class ModelStatisticsList(msgspec.Struct):
    model_stats: list[ModelStatistics]
