"""PyTorch: programs of torch.export (model.pt2) and TorchScript (model.pt). Pickled modules are never loaded.

Inputs have the names of forward's arguments, or INPUT__0, INPUT__1 by position. Outputs have the keys of a returned
dict, or OUTPUT__0, OUTPUT__1 by position, or else any names in the order in which the description declares them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from shared.errors import ConfigError
from shared.protocol import DataType
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.frameworks import model_file, parameters, torch_archive
from workers.predictors.frameworks.devices import cuda_device
from workers.predictors.frameworks.signature import DEFAULT_MAX_BATCH_SIZE, Signature
from workers.predictors.interface import Array, Arrays, Execution

POSITION = re.compile(r"(?:INPUT|OUTPUT)__(\d+)")
DATA_TYPES: dict[torch.dtype, DataType] = {
    **{torch.bool: "BOOL", torch.float16: "FP16", torch.float32: "FP32", torch.float64: "FP64"},
    **{torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64"},
    **{torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64"},
    torch.bfloat16: "BF16",
}
Tensors = Sequence[torch.Tensor] | Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Module:
    """A loaded module.

    Attributes:
        arguments: names of forward's arguments, in order.
        call: takes the arguments by name.
        program: its program, if torch.export made it.
    """

    arguments: tuple[str, ...]
    call: Callable[..., Any]
    memory_bytes: int
    program: torch.export.ExportedProgram | None = None


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    module = _load(spec, folder, torch.device("cpu"))
    if module.program is not None:
        spec = _signature(spec, module).complete(spec)
    elif not (spec.inputs and spec.outputs):
        raise ConfigError(
            f"model {spec.name} is TorchScript, and must declare its inputs and outputs", param="input"
        )
    _check_names(spec, module)
    return spec


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> TorchPredictor:
    device = cuda_device(spec, available=torch.cuda.is_available())
    place = torch.device("cpu") if device is None else torch.device("cuda", device)
    module = _load(spec, folder, place)
    _check_names(spec, module)
    return TorchPredictor(module, spec, place, parameters.number(spec, "INTRA_OP_THREAD_COUNT") or threads)


class TorchPredictor:
    """An instance of a module."""

    def __init__(self, module: Module, spec: ModelSpec, device: torch.device, threads: int | None) -> None:
        self._module = module
        self._device = device
        self._threads = threads
        self._arguments = {each.name: _argument(each.name, module) for each in spec.inputs}
        self._bfloat16 = {each.name for each in spec.inputs if each.datatype == "BF16"}
        self._outputs = [each.name for each in spec.outputs]
        self.memory_bytes = module.memory_bytes

    def predict(self, call: Execution) -> Arrays:
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of the calling thread
        with torch.inference_mode():
            given = {self._arguments[name]: self._tensor(name, array) for name, array in call.inputs.items()}
            found = _tensors(self._module.call(**given))
            return {name: _array(_output(name, found, self._outputs)) for name in call.outputs or self._outputs}

    def stream(self, call: Execution) -> Iterator[Arrays]:
        yield self.predict(call)

    def close(self) -> None:
        del self._module

    def _tensor(self, name: str, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._device, torch.bfloat16 if name in self._bfloat16 else None)


def _load(spec: ModelSpec, folder: Path, device: torch.device) -> Module:
    path = model_file.find(spec, folder)
    try:
        return _load_program(path, device) if path.suffix == ".pt2" else _load_script(path, device)
    except torch_archive.UnsafeArchive as error:
        raise model_file.unusable(spec, path, error) from error
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise model_file.unusable(spec, path, reason[0]) from error


def _load_program(path: Path, device: torch.device) -> Module:
    torch_archive.check(path)
    program = torch.export.load(path)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    arguments, keywords = (program.call_spec.in_spec.child(number) for number in range(2))
    if not all(each.is_leaf() for each in (*arguments.children(), *keywords.children())):
        raise ValueError("its arguments must be tensors, not lists or dicts of them")
    names = tuple(program.graph_signature.user_inputs)
    positional = names[: arguments.num_children]
    module = program.module()

    def call(**given: torch.Tensor) -> Any:
        return module(*[given.pop(name) for name in positional], **given)

    tensors = (*program.state_dict.values(), *program.constants.values())
    return Module(names, call, _bytes(tensors), program)


def _load_script(path: Path, device: torch.device) -> Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what Triton's users have
        script = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    script.eval()
    arguments = tuple(each.name for each in script.forward.schema.arguments[1:])
    return Module(arguments, script, _bytes((*script.parameters(), *script.buffers())))


def _bytes(tensors: Sequence[Any]) -> int:
    return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


def _signature(spec: ModelSpec, module: Module) -> Signature:
    """Return the signature of a program, with the names that the description uses."""
    program = module.program
    assert program is not None
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    named = {_argument(each.name, module): each.name for each in spec.inputs}
    inputs = [_described(spec, named.get(name, name), values[name]) for name in module.arguments]
    keys = _output_names(spec, program)
    found = zip(keys, program.graph_signature.user_outputs, strict=True)
    outputs = [_described(spec, key, values[str(name)]) for key, name in found]
    limits = [_most_rows(program, values[name].shape[0]) for name in module.arguments if values[name].ndim]
    return Signature(tuple(inputs), tuple(outputs), max_batch_size=min([DEFAULT_MAX_BATCH_SIZE, *limits]))


def _described(spec: ModelSpec, name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in DATA_TYPES:
        raise ConfigError(f"model {spec.name}: {name} is no tensor of a supported type")
    dims = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=name, datatype=DATA_TYPES[value.dtype], dims=dims)


def _output_names(spec: ModelSpec, program: torch.export.ExportedProgram) -> list[str]:
    out = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    if out is not None and out.type is dict:
        return [str(key) for key in out.context]
    declared = [each.name for each in spec.outputs]
    if len(declared) == count and not any(POSITION.fullmatch(name) for name in declared):
        return declared
    return [f"OUTPUT__{number}" for number in range(count)]


def _most_rows(program: torch.export.ExportedProgram, size: Any) -> int:
    """Return the upper bound of a free first dimension."""
    if isinstance(size, int):
        return size
    bounds = program.range_constraints.get(size.node.expr)
    upper = getattr(bounds, "upper", None)
    return int(upper) if upper is not None and getattr(upper, "is_Integer", False) else DEFAULT_MAX_BATCH_SIZE


def _argument(name: str, module: Module) -> str:
    """Return the argument of forward that an input is."""
    position = POSITION.fullmatch(name)
    if name in module.arguments or position is None or int(position[1]) >= len(module.arguments):
        return name
    return module.arguments[int(position[1])]


def _check_names(spec: ModelSpec, module: Module) -> None:
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.datatype == "BYTES":
            raise ConfigError(f"model {spec.name}: {tensor.name} is of BYTES, which PyTorch has not")
    for tensor in spec.inputs:
        if _argument(tensor.name, module) not in module.arguments:
            raise ConfigError(
                f"model {spec.name} has no input {tensor.name}; it has {', '.join(module.arguments)}, "
                "or INPUT__0 and so on",
                param="input",
            )


def _tensors(found: Any) -> Tensors:
    return (found,) if isinstance(found, torch.Tensor) else found


def _output(name: str, found: Tensors, declared: Sequence[str]) -> torch.Tensor:
    """Return an output by its key or position. Raises LookupError, a fault of the model."""
    if isinstance(found, Mapping):
        return found[name]
    position = POSITION.fullmatch(name)
    return found[int(position[1]) if position else declared.index(name)]


def _array(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    found: Array = np.asarray(tensor.cpu())
    return found
