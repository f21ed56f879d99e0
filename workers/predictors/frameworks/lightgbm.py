"""LightGBM's own text files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightgbm

from shared.repository.spec import ModelSpec
from workers.predictors.frameworks import model_file, tables
from workers.predictors.frameworks.scores import Scores
from workers.predictors.interface import Array, Arrays, Execution

MEMORY_PER_BYTE = 2  # of the file


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    booster = _load(spec, folder)
    scores = Scores.from_spec(spec)
    return tables.complete(
        spec, booster.num_feature(), lambda table: {tables.OUTPUT: scores.convert(_compute(booster, table, None))}
    )


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> LightgbmPredictor:
    return LightgbmPredictor(_load(spec, folder), spec, threads, MEMORY_PER_BYTE * model_file.size(folder))


class LightgbmPredictor:
    """An instance of a booster."""

    def __init__(self, booster: lightgbm.Booster, spec: ModelSpec, threads: int | None, memory_bytes: int) -> None:
        self._booster = booster
        self._spec = spec
        self._threads = threads
        self._scores = Scores.from_spec(spec)
        self.memory_bytes = memory_bytes

    def predict(self, call: Execution) -> Arrays:
        table = tables.join_columns(self._spec, call.inputs)
        found = self._scores.convert(_compute(self._booster, table, self._threads))
        return tables.as_declared(self._spec, {self._spec.outputs[0].name: found})

    def stream(self, call: Execution) -> Iterator[Arrays]:
        yield self.predict(call)

    def close(self) -> None:
        del self._booster


def _load(spec: ModelSpec, folder: Path) -> lightgbm.Booster:
    path = model_file.find(spec, folder)
    try:
        return lightgbm.Booster(model_file=path)
    except lightgbm.basic.LightGBMError as error:
        raise model_file.unusable(spec, path, error) from error


def _compute(booster: lightgbm.Booster, table: Array, threads: int | None) -> Array:
    found: Array = booster.predict(table, num_threads=threads or 0)
    return found
