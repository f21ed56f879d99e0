"""Estimators of scikit-learn in skops files. Pickles are never read.

Types that skops does not trust are refused, unless the parameter `trusted_types` names them, separated by commas.

Each output is computed by the method that it is named after: `predict`, `predict_proba`, `decision_function` or
`transform`, or by skl2onnx' name for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skops.io

from shared.errors import ConfigError, InvalidRequest
from shared.repository.spec import ModelSpec
from workers.predictors.frameworks import model_file, tables
from workers.predictors.frameworks.sklearn_trees import TREE, is_sound, trees_in
from workers.predictors.interface import Array, Arrays, Execution

METHODS = {
    **{name: name for name in ("predict", "predict_proba", "decision_function", "transform")},
    **{"label": "predict", "output_label": "predict", "variable": "predict"},
    **{"probabilities": "predict_proba", "output_probability": "predict_proba"},
}
DEFAULT_METHODS = (("predict", "predict_proba"), ("predict",), ("transform",))  # the first that the estimator has
MEMORY_PER_BYTE = 4  # of the file, which is compressed


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    estimator = _load(spec, folder)
    names = [each.name for each in spec.outputs] or _default_outputs(spec, estimator)
    _check_outputs(spec, estimator, names)
    columns = getattr(estimator, "n_features_in_", None)
    if columns is None:
        raise ConfigError(f"model {spec.name}: its {type(estimator).__name__} is not fitted to a number of columns")
    return tables.complete(spec, columns, lambda table: _compute(estimator, names, table))


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> SklearnPredictor:
    estimator = _load(spec, folder)
    _check_outputs(spec, estimator, [each.name for each in spec.outputs])
    if threads is not None and hasattr(estimator, "n_jobs"):
        estimator.n_jobs = threads
    return SklearnPredictor(estimator, spec, MEMORY_PER_BYTE * model_file.size(folder))


class SklearnPredictor:
    """An instance of an estimator."""

    def __init__(self, estimator: Any, spec: ModelSpec, memory_bytes: int) -> None:
        self._estimator = estimator
        self._spec = spec
        self._outputs = [each.name for each in spec.outputs]
        self.memory_bytes = memory_bytes

    def predict(self, call: Execution) -> Arrays:
        table = tables.join_columns(self._spec, call.inputs)
        try:
            found = _compute(self._estimator, call.outputs or self._outputs, table)
        except ValueError as error:
            raise InvalidRequest(f"the model refuses its inputs: {error}") from error
        return tables.as_declared(self._spec, found)

    def stream(self, call: Execution) -> Iterator[Arrays]:
        yield self.predict(call)

    def close(self) -> None:
        del self._estimator


def _load(spec: ModelSpec, folder: Path) -> Any:
    path = model_file.find(spec, folder)
    given = spec.parameters.get("trusted_types", "")
    trusted = [TREE, *filter(None, (each.strip() for each in given.split(",")))]
    try:
        untrusted = skops.io.get_untrusted_types(file=path)
        unknown = [each for each in untrusted if each not in trusted]
        estimator = None if unknown else skops.io.load(path, trusted=trusted)
    except Exception as error:  # a damaged file may raise anything
        raise model_file.unusable(spec, path, error) from error
    if unknown:
        reason = f"it has types that are not trusted: {', '.join(unknown)}; name those that are in trusted_types"
        raise model_file.unusable(spec, path, reason)
    if not all(is_sound(tree) for tree in trees_in(estimator)):
        raise model_file.unusable(spec, path, "a tree in it has nodes that do not exist")
    return estimator


def _default_outputs(spec: ModelSpec, estimator: Any) -> list[str]:
    for methods in DEFAULT_METHODS:
        if all(hasattr(estimator, each) for each in methods):
            return list(methods)
    raise ConfigError(f"model {spec.name}: its {type(estimator).__name__} has neither predict nor transform")


def _check_outputs(spec: ModelSpec, estimator: Any, names: list[str]) -> None:
    for name in names:
        if name not in METHODS:
            raise ConfigError(
                f"the outputs of model {spec.name} must be of {', '.join(METHODS)}, got {name}", param="output"
            )
        if not hasattr(estimator, METHODS[name]):
            raise ConfigError(
                f"model {spec.name}: its {type(estimator).__name__} has no {METHODS[name]}, for the output {name}",
                param="output",
            )


def _compute(estimator: Any, names: tuple[str, ...] | list[str], table: Array) -> Arrays:
    return {name: _dense(getattr(estimator, METHODS[name])(table)) for name in names}


def _dense(found: Any) -> Array:
    if isinstance(found, list):  # one array for each output of the estimator
        return np.stack(found, axis=1)
    dense: Array = found.toarray() if hasattr(found, "toarray") else found
    return dense
