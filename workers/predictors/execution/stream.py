"""Execution of decoupled models, which return any number of responses to a request."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import msgspec

from shared.errors import HeadraceError
from shared.protocol import Result, Token
from workers.engine.interface import EngineOutput
from workers.predictors.execution.executor import VersionParts, calling_model, failed
from workers.predictors.execution.sequence_tensors import SequenceTensors
from workers.predictors.interface import Arrays, Execution, Predictor
from workers.predictors.scheduling.job import Batch, Job, Row
from workers.predictors.statistics import Times

RESPONSE_ID = -1  # of the token that carries a response


class StreamExecutor:
    """Executes the requests of a batch one after another. Each response is a token whose text is a Result as JSON.

    A continued request starts again; the responses that are in its log already are left out.
    """

    def __init__(self, parts: VersionParts, predictor: Predictor) -> None:
        self._parts = parts
        self._predictor = predictor
        self._sequences = SequenceTensors(parts.spec) if parts.spec.sequence_batching is not None else None

    def run(self, batch: Batch) -> Iterator[tuple[Job, EngineOutput]]:
        for row in batch.rows:
            if row.job is not None:
                yield from self._run(row, row.job)

    def _run(self, row: Row, job: Job) -> Iterator[tuple[Job, EngineOutput]]:
        started = self._parts.clock()
        try:
            for token in self._tokens(row, job):
                yield job, EngineOutput(job.id, (token,))
        except HeadraceError as error:
            yield job, failed(job, error, self._parts)
            return
        self._count(job, started)
        yield job, EngineOutput(job.id, finished=True)

    def close(self) -> None:
        self._predictor.close()

    def _tokens(self, row: Row, job: Job) -> Iterator[Token]:
        source = job.request.source
        logged = len(source.logged) if source is not None else 0
        with calling_model(self._parts, job):
            inputs = self._parts.reader.read(job.work)
            if self._sequences is not None:
                inputs |= self._sequences.inputs(row)
            responses = self._predictor.stream(Execution(inputs, job.work.outputs, job.work.parameters))
            try:
                for number, arrays in enumerate(responses):
                    if job.cancelled:
                        return
                    if self._sequences is not None:
                        self._sequences.keep(row, arrays)
                    if number == 0:
                        self._parts.statistics.count_first_response(self._parts.clock() - job.arrived_ns)
                    if number >= logged:
                        yield self._token(arrays, job)
            finally:
                if isinstance(responses, Generator):
                    responses.close()

    def _token(self, arrays: Arrays, job: Job) -> Token:
        tensors = self._parts.writer.write(arrays, job.work)
        result = Result(tensors=tensors, version=self._parts.version)
        return Token(0, RESPONSE_ID, msgspec.json.encode(result).decode())

    def _count(self, job: Job, started: int) -> None:
        if job.cancelled:
            return
        now = self._parts.clock()
        times = Times(compute_infer=now - started)
        self._parts.statistics.count_execution(job.checked.batch_size, times)
        waited = started - job.arrived_ns
        self._parts.statistics.count_success(job.checked.batch_size, now - job.arrived_ns, waited, times)
