"""ONNX graphs, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import DataType
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.frameworks import model_file, parameters, texts
from workers.predictors.frameworks.devices import cuda_device
from workers.predictors.frameworks.signature import Signature
from workers.predictors.interface import Arrays, Execution

DATA_TYPES: dict[str, DataType] = {
    **{"tensor(bool)": "BOOL", "tensor(string)": "BYTES"},
    **{"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64"},
    **{
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
    },
    **{"tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64"},
}
RUN_OPTION = "memory.enable_memory_arena_shrinkage"
FATAL = 4  # a level of ONNX Runtime's log
MEMORY_PER_BYTE = 2  # of the file: the weights, and their copies in the layout of the kernels
Options = TypeVar("Options", ort.SessionOptions, ort.RunOptions)


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    options = _quiet(ort.SessionOptions())
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(spec, folder, options, ["CPUExecutionProvider"])
    signature = Signature(
        inputs=tuple(_tensor(spec, node, optional=False) for node in session.get_inputs())
        + tuple(_tensor(spec, node, optional=True) for node in session.get_overridable_initializers()),
        outputs=tuple(_tensor(spec, node, optional=False) for node in session.get_outputs()),
    )
    return signature.complete(spec)


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> OnnxPredictor:
    options = _options(spec, threads)
    session = _open(spec, folder, options, _providers(spec))
    run_options = _quiet(ort.RunOptions())
    if shrinkage := spec.parameters.get(RUN_OPTION):
        run_options.add_run_config_entry(RUN_OPTION, shrinkage)
    weights = model_file.size(folder)  # which may be in files of their own
    return OnnxPredictor(session, run_options, MEMORY_PER_BYTE * weights)


class OnnxPredictor:
    """An instance of an ONNX graph."""

    def __init__(self, session: ort.InferenceSession, run_options: ort.RunOptions, memory_bytes: int) -> None:
        self._session = session
        self._run_options = run_options
        self._texts = {node.name for node in session.get_inputs() if node.type == "tensor(string)"}
        self._outputs = [node.name for node in session.get_outputs()]
        self.memory_bytes = memory_bytes

    def predict(self, call: Execution) -> Arrays:
        feed = {
            name: texts.decode(name, array) if name in self._texts else array for name, array in call.inputs.items()
        }
        names = list(call.outputs) or self._outputs
        try:
            found = self._session.run(names, feed, self._run_options)
        except InvalidArgument as error:
            raise InvalidRequest(f"the model refuses its inputs: {error}") from error
        return {
            name: texts.encode(array) if array.dtype == object else array
            for name, array in zip(names, found, strict=True)
        }

    def stream(self, call: Execution) -> Iterator[Arrays]:
        yield self.predict(call)

    def close(self) -> None:
        del self._session


def _quiet(options: Options) -> Options:
    """Keep errors out of stderr; each is raised, too."""
    options.log_severity_level = FATAL
    return options


def _open(spec: ModelSpec, folder: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    path = model_file.find(spec, folder)
    try:
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # it raises a class of its own for each status, without a common base
        raise model_file.unusable(spec, path, error) from error


def _tensor(spec: ModelSpec, node: ort.NodeArg, *, optional: bool) -> TensorSpec:
    if node.type not in DATA_TYPES:
        raise ConfigError(f"model {spec.name}: {node.name} has the unsupported type {node.type}")
    dims = tuple(size if isinstance(size, int) else -1 for size in node.shape or ())
    return TensorSpec(name=node.name, datatype=DATA_TYPES[node.type], dims=dims, optional=optional)


def _options(spec: ModelSpec, threads: int | None) -> ort.SessionOptions:
    """Return the options by the parameters of Triton's backend, which win over the worker's number of threads."""
    options = _quiet(ort.SessionOptions())
    options.intra_op_num_threads = parameters.number(spec, "intra_op_thread_count") or threads or 0
    options.inter_op_num_threads = parameters.number(spec, "inter_op_thread_count") or 0
    if parameters.flag(spec, "execution_mode"):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = parameters.flag(spec, "enable_mem_arena", default=True)
    options.enable_mem_pattern = parameters.flag(spec, "enable_mem_pattern", default=True)
    for name, value in spec.parameters.items():
        if name.startswith("session."):
            options.add_session_config_entry(name, value)
    return options


def _providers(spec: ModelSpec) -> list[Any]:
    """Return the execution providers, the preferred one first."""
    found = ort.get_available_providers()
    device = cuda_device(spec, available="CUDAExecutionProvider" in found)
    if device is None:
        return ["CPUExecutionProvider"]
    chosen: list[Any] = [("CUDAExecutionProvider", {"device_id": device}), "CPUExecutionProvider"]
    if spec.parameters.get("execution_accelerator") == "tensorrt":
        if "TensorrtExecutionProvider" not in found:
            raise ConfigError(
                f"model {spec.name}: this ONNX Runtime has no TensorRT", param="execution_accelerator"
            )
        chosen.insert(0, ("TensorrtExecutionProvider", {"device_id": device}))
    return chosen
