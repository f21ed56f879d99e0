"""XGBoost's own files, JSON or UBJSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xgboost

from shared.repository.spec import ModelSpec
from workers.predictors.frameworks import model_file, tables
from workers.predictors.frameworks.scores import Scores
from workers.predictors.interface import Array, Arrays, Execution

MEMORY_PER_BYTE = 2  # of the file


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    booster = _load(spec, folder, None)
    scores = Scores.from_spec(spec)
    return tables.complete(
        spec, booster.num_features(), lambda table: {tables.OUTPUT: scores.convert(_compute(booster, table))}
    )


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> XgboostPredictor:
    return XgboostPredictor(_load(spec, folder, threads), spec, MEMORY_PER_BYTE * model_file.size(folder))


class XgboostPredictor:
    """An instance of a booster."""

    def __init__(self, booster: xgboost.Booster, spec: ModelSpec, memory_bytes: int) -> None:
        self._booster = booster
        self._spec = spec
        self._scores = Scores.from_spec(spec)
        self.memory_bytes = memory_bytes

    def predict(self, call: Execution) -> Arrays:
        found = self._scores.convert(_compute(self._booster, tables.join_columns(self._spec, call.inputs)))
        return tables.as_declared(self._spec, {self._spec.outputs[0].name: found})

    def stream(self, call: Execution) -> Iterator[Arrays]:
        yield self.predict(call)

    def close(self) -> None:
        del self._booster


def _load(spec: ModelSpec, folder: Path, threads: int | None) -> xgboost.Booster:
    path = model_file.find(spec, folder)
    try:
        return xgboost.Booster({"nthread": threads} if threads else None, model_file=path)
    except xgboost.core.XGBoostError as error:
        raise model_file.unusable(spec, path, str(error).strip().splitlines()[0]) from error


def _compute(booster: xgboost.Booster, table: Array) -> Array:
    found: Array = booster.inplace_predict(table, validate_features=False)
    return found
