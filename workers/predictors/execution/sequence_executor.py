"""Execution of batches of sequences: with controls, state and slots that are not ready."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.protocol import Result
from workers.predictors.execution.executor import BatchExecutor, VersionParts
from workers.predictors.execution.joining import divide, join
from workers.predictors.execution.sequence_tensors import SequenceTensors
from workers.predictors.interface import Array, Arrays, Execution, Predictor
from workers.predictors.scheduling.job import Batch


class SequenceExecutor(BatchExecutor):
    """Executes models with sequence batching."""

    def __init__(self, parts: VersionParts, predictor: Predictor) -> None:
        super().__init__(parts, predictor)
        self._tensors = SequenceTensors(parts.spec)
        outputs = [each.name for each in parts.spec.outputs]
        self._names = tuple(dict.fromkeys([*outputs, *self._tensors.output_names]))

    def _call(self, batch: Batch) -> Execution:
        given = {job: self._parts.reader.read(job.work) for job in batch.jobs}
        absent = _zeros_like(given[batch.jobs[0]])
        parts = [
            {**(absent if row.job is None else given[row.job]), **self._tensors.inputs(row)} for row in batch.rows
        ]
        wanted = batch.wanted_outputs()
        names = tuple(dict.fromkeys([*wanted, *self._tensors.output_names])) if wanted else ()
        return Execution(join(parts), names, batch.jobs[0].work.parameters)

    def _results(self, batch: Batch, outputs: Arrays) -> list[Result]:
        if self._parts.spec.max_batch_size:
            parts: list[Arrays] = [*divide(outputs, self._names, [1] * len(batch.rows))]
        else:
            parts = [outputs]
        of_jobs = [(row, part) for row, part in zip(batch.rows, parts, strict=True) if row.job is not None]
        results = [self._result(row.job, part) for row, part in of_jobs if row.job is not None]
        for row, part in of_jobs:
            self._tensors.keep(row, part)
        return results


def _zeros_like(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.zeros_like(array) for name, array in arrays.items()}
