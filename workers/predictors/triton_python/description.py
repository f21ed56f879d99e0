"""Descriptions of models as Triton gives them to a TritonPythonModel, and completion by `auto_complete_config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import ConfigError
from shared.protocol import DATA_TYPES, DataType
from shared.repository.spec import DynamicBatching, ModelSpec, TensorSpec

TYPES: dict[DataType, str] = {each: f"TYPE_{each}" for each in DATA_TYPES} | {"BYTES": "TYPE_STRING"}
BY_TYPE = {name: each for each, name in TYPES.items()}


def model_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the fields of a ModelConfig that a model may read."""
    return {
        "name": spec.name,
        "platform": spec.platform,
        "backend": spec.backend,
        "max_batch_size": spec.max_batch_size,
        "input": [_tensor(each) | {"optional": each.optional} for each in spec.inputs],
        "output": [_tensor(each) for each in spec.outputs],
        "instance_group": [
            {"kind": each.kind, "count": each.count, "gpus": list(each.gpus)} for each in spec.instance_groups
        ],
        "default_model_filename": spec.default_model_filename,
        "parameters": {name: {"string_value": value} for name, value in spec.parameters.items()},
        "model_transaction_policy": {"decoupled": spec.decoupled},
    }


def arguments(spec: ModelSpec, folder: Path) -> dict[str, str]:
    """Return the argument of `initialize`."""
    group = spec.instance_groups[0]
    return {
        "model_config": json.dumps(model_config(spec)),
        "model_instance_kind": "GPU" if group.kind == "KIND_GPU" else "CPU",
        "model_instance_name": f"{spec.name}_0",
        "model_instance_device_id": str(group.gpus[0] if group.gpus else 0),
        "model_repository": str(folder.parent),
        "model_version": folder.name,
        "model_name": spec.name,
    }


def complete(spec: ModelSpec, model: Any) -> ModelSpec:
    """Return the description as the model's `auto_complete_config` completes it, if it has one."""
    if not hasattr(model, "auto_complete_config"):
        return spec
    completed = model.auto_complete_config(ModelConfig(spec))
    if not isinstance(completed, ModelConfig):
        raise ConfigError(f"auto_complete_config of model {spec.name} must return its argument")
    return completed.spec


class ModelConfig:
    """The argument of `auto_complete_config`. What the description already has stays as it is."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def as_dict(self) -> dict[str, Any]:
        return model_config(self.spec)

    def add_input(self, given: dict[str, Any]) -> None:
        self._change(inputs=_added(self.spec.inputs, given))

    def add_output(self, given: dict[str, Any]) -> None:
        self._change(outputs=_added(self.spec.outputs, given))

    def set_max_batch_size(self, max_batch_size: int) -> None:
        if not self.spec.max_batch_size:
            self._change(max_batch_size=max_batch_size)

    def set_dynamic_batching(self) -> None:
        if self.spec.dynamic_batching is None and self.spec.sequence_batching is None:
            self._change(dynamic_batching=DynamicBatching())

    def set_model_transaction_policy(self, given: dict[str, bool]) -> None:
        self._change(decoupled=bool(given.get("decoupled", False)))

    def _change(self, **fields: Any) -> None:
        self.spec = msgspec.structs.replace(self.spec, **fields)


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": tensor.name,
        "data_type": TYPES[tensor.datatype],
        "dims": list(tensor.dims),
    }
    if tensor.reshape is not None:
        described["reshape"] = {"shape": list(tensor.reshape)}
    return described


def _added(tensors: tuple[TensorSpec, ...], given: dict[str, Any]) -> tuple[TensorSpec, ...]:
    try:
        name, kind, dims = given["name"], BY_TYPE[given["data_type"]], tuple(int(size) for size in given["dims"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("auto_complete_config must give tensors a name, a data_type and dims") from error
    if any(each.name == name for each in tensors):
        return tensors
    return (*tensors, TensorSpec(name=name, datatype=kind, dims=dims, optional=bool(given.get("optional", False))))
