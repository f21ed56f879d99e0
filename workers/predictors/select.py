"""The choice of the module that loads a model."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec
from workers.predictors.interface import PredictorModule

EXTRAS = {  # of Headrace's, by backend
    "onnxruntime": "onnx",
    "pytorch": "worker",
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "tensorflow": "tensorflow",
    "python": "worker",
}
OWN_PROCESS = ("python", "tensorflow")  # code that may do anything; a runtime that never gives its memory back


def module_for(spec: ModelSpec) -> PredictorModule:
    """Return what loads a model, in a process of its own if its backend or its description asks for one.

    Raises ConfigError if there is no such backend, or if its package is missing.
    """
    process = spec.parameters.get("process", "")
    if process not in ("", "own"):
        raise ConfigError(f"parameter process of model {spec.name} must be own, got {process!r}", param="process")
    if process or spec.backend in OWN_PROCESS:
        return cast(PredictorModule, import_module("workers.predictors.process.predictor"))
    return framework_of(spec)


def framework_of(spec: ModelSpec) -> PredictorModule:
    """Return the module of a model's framework. Raises ConfigError as `module_for` does."""
    if spec.backend not in EXTRAS:
        raise ConfigError(
            f"backend of model {spec.name} must be one of {', '.join(EXTRAS)}, got {spec.backend!r}",
            param="backend",
        )
    try:
        module = import_module(f"workers.predictors.frameworks.{spec.backend}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("workers"):
            raise
        extra = EXTRAS[spec.backend]
        raise ConfigError(
            f"model {spec.name} needs the package {error.name}: pip install 'headrace[{extra}]'", param="backend"
        ) from error
    return cast(PredictorModule, module)
