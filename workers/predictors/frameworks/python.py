"""Python classes of the user's, in the file model.py: Triton's `TritonPythonModel`, or a class `Model`.

class Model:
    def predict(self, inputs: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]: ...
    def close(self) -> None: ...  # if there is something to clean up

If the model is decoupled, `predict` is a generator. The module is imported in a process of the model's own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec
from workers.predictors.frameworks import model_file
from workers.predictors.interface import Arrays, Execution, Predictor
from workers.predictors.triton_python import description, pb_utils
from workers.predictors.triton_python.predictor import TritonPredictor

MODULE = "model"


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    if not (spec.inputs and spec.outputs):
        triton = getattr(_import(model_file.find(spec, folder)), "TritonPythonModel", None)
        spec = description.complete(spec, triton)
    if not (spec.inputs and spec.outputs):
        raise ConfigError(f"model {spec.name} must declare its inputs and outputs", param="input")
    return spec


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> Predictor:
    path = model_file.find(spec, folder)
    module = _import(path)
    if hasattr(module, "TritonPythonModel"):
        return TritonPredictor(module.TritonPythonModel(), spec, folder)
    if hasattr(module, "Model"):
        return PythonPredictor(module.Model(), decoupled=spec.decoupled)
    raise model_file.unusable(spec, path, "it must have a class Model or TritonPythonModel")


class PythonPredictor:
    """An instance of the user's class `Model`."""

    memory_bytes = 0  # its process reports what it needs

    def __init__(self, model: Any, *, decoupled: bool) -> None:
        self._model = model
        self._decoupled = decoupled

    def predict(self, call: Execution) -> Arrays:
        outputs: Arrays = self._model.predict(dict(call.inputs))
        return outputs

    def stream(self, call: Execution) -> Iterator[Arrays]:
        if self._decoupled:
            yield from self._model.predict(dict(call.inputs))
        else:
            yield self.predict(call)

    def close(self) -> None:
        if hasattr(self._model, "close"):
            self._model.close()


def _import(path: Path) -> ModuleType:
    """Execute the module, which may import others beside it."""
    sys.modules["triton_python_backend_utils"] = pb_utils
    sys.path.append(str(path.parent))
    found = importlib.util.spec_from_file_location(MODULE, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[MODULE] = module  # the user's code may look itself up
    found.loader.exec_module(module)
    return module
