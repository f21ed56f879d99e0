"""Engine of a model that takes tensors and returns tensors, with several versions at a time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import MappingProxyType

import msgspec

from shared.errors import HeadraceError, InvalidRequest, Unavailable, VersionNotFound
from shared.models.worker_registry import Task
from shared.protocol import Infer
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionStatistics
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.stats import EngineStats
from workers.predictors.execution.ensemble import FindModel
from workers.predictors.execution.executor import Clock
from workers.predictors.interface import Predictor
from workers.predictors.outbox import Outbox
from workers.predictors.response_cache import ResponseCache
from workers.predictors.scheduling.job import Deliver, Job
from workers.predictors.version import Context, Version

CLOSE_TIMEOUT_S = 10.0


class PredictorEngine:
    """Generator that executes the requests of one model, each on one of its versions.

    The worker's thread calls the methods of a Generator. `submit`, `cancel` and the methods for versions may be
    called from any thread.

    Args:
        folder: of the model in the repository, with the files that its description names.
        find: finds the models of an ensemble's steps in this process, by name.
        cache: for the responses of versions whose description enables it.
        clock: monotonic, in nanoseconds.
    """

    tokenizer = None
    constraints = None
    task: Task = "predict"
    max_model_len = 0
    computation: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path | None = None,
        *,
        find: FindModel = lambda name: None,
        cache: ResponseCache | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.name = spec.name
        self.fingerprint = f"fp_predict_{hashlib.sha256(msgspec.json.encode(spec)).hexdigest()[:16]}"
        self._spec = spec
        self._lock = threading.Lock()
        self._context = Context(folder, self._lock, clock, self._deliver, find, cache)
        self._versions: dict[str, Version] = {}  # ready ones, oldest first
        self._closing: list[Version] = []
        self._jobs: dict[str, tuple[Version, Job]] = {}
        self._awaiting = False
        self._awaiting_version: dict[str, tuple[EngineRequest, Deliver]] = {}
        self._outbox = Outbox()
        self._taken: set[str] = set()  # requests of the worker that have not ended

    # versions

    @property
    def spec(self) -> ModelSpec:
        """Return the description of the newest ready version, or of the model without one."""
        with self._lock:
            return next((each.spec for each in reversed(self._versions.values())), self._spec)

    @property
    def versions(self) -> tuple[str, ...]:
        """Return the ready versions, oldest first."""
        with self._lock:
            return tuple(self._versions)

    def add_version(self, version: str, instances: Sequence[Predictor], *, spec: ModelSpec | None = None) -> None:
        """Serve a version once each instance is warm; it replaces one of the same name, whose requests go on.

        The engine closes the instances, also if this fails. It blocks: call it in a thread.

        Args:
            version: a number.
            spec: the version's description, if it differs from the model's.

        Raises:
            ConfigError: the warm-up failed, or a file that the description names is missing.
        """
        try:
            added = Version(version, spec or self._spec, instances, self._context)
        except BaseException:
            for instance in instances:
                instance.close()
            raise
        with self._lock:
            self._retire(version)
            versions = {**self._versions, version: added}
            self._versions = {each: versions[each] for each in sorted(versions, key=int)}
        self._run_awaiting()

    def remove_version(self, version: str) -> Future[None]:
        """Let new requests not reach a version. The future completes when its requests ended and it is closed.

        Raises VersionNotFound.
        """
        with self._lock:
            if version not in self._versions:
                raise self._not_found(version)
            return self._retire(version)

    def await_versions(self) -> None:
        """Let requests for versions that are not there wait, until `settle`."""
        with self._lock:
            self._awaiting = True

    def settle(self, error: HeadraceError | None = None) -> None:
        """Refuse requests for versions that are not there, and those that waited, with `error` if it is given."""
        with self._lock:
            self._awaiting = False
            awaiting, self._awaiting_version = self._awaiting_version, {}
        for request, deliver in awaiting.values():
            self._submit_awaited(request, deliver, error)

    def statistics(self) -> dict[str, VersionStatistics]:
        """Return the statistics of each ready version."""
        with self._lock:
            return {name: version.statistics() for name, version in self._versions.items()}

    def recent(self) -> dict[str, list[tuple[int, ...]]]:
        """Return the durations of the last requests of each version; see Statistics."""
        with self._lock:
            return {name: version.parts.statistics.recent() for name, version in self._versions.items()}

    def first_responses(self) -> dict[str, tuple[list[int], int]]:
        """Return how soon first responses came from each ready version: counts by bucket, and the sum in ns."""
        with self._lock:
            return {name: version.parts.statistics.first_responses() for name, version in self._versions.items()}

    def close(self) -> None:
        """Drop all requests and close all versions."""
        self._outbox.close()
        self._taken.clear()
        self.settle()
        for request_id in list(self._jobs):
            self.cancel(request_id)
        with self._lock:
            for name in list(self._versions):
                self._retire(name)
            closing = list(self._closing)
            for version in closing:
                version.close(sequences=False)
        wait([each.closed for each in closing], CLOSE_TIMEOUT_S)

    # requests

    def submit(self, request: EngineRequest, deliver: Deliver) -> None:
        """Accept a request, which then always ends: `deliver` takes its outputs, from any thread.

        Raises HeadraceError if it is refused.
        """
        work = _infer(request)
        with self._lock:
            if request.id in self._jobs or request.id in self._awaiting_version:
                raise InvalidRequest(f"request {request.id} is running already")
            version = self._find_sequence(request, work) or self._find(work.version)
            if version is None:
                self._awaiting_version[request.id] = (request, deliver)
                return
            job = version.add(request, work, deliver)
            self._jobs[request.id] = (version, job)
        version.begin(job)

    def cancel(self, request_id: str) -> bool:
        """Drop a request. Return False if the id is unknown."""
        with self._lock:
            if self._awaiting_version.pop(request_id, None) is not None:
                return True
            found = self._jobs.pop(request_id, None)
            if found is None:
                return False
            version, job = found
            version.remove(job)
        version.flush()
        return True

    # the methods of a Generator

    def add(self, request: EngineRequest) -> None:
        self.submit(request, self._outbox.put)
        self._taken.add(request.id)

    def abort(self, job_id: str) -> bool:
        if job_id not in self._taken:
            return False
        self._taken.discard(job_id)
        self.cancel(job_id)
        return True

    def step(self) -> list[EngineOutput]:
        """Return the outputs that have arrived of requests that were not aborted."""
        outputs = [output for output in self._outbox.take() if output.job_id in self._taken]
        self._taken.difference_update(output.job_id for output in outputs if output.finished)
        return outputs

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Ignore the signal: steps take no time."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._outbox.wake_with(wake)

    def has_work(self) -> bool:
        return self._outbox.has_outputs

    def stats(self) -> EngineStats:
        with self._lock:
            versions = [*self._versions.values(), *self._closing]
            running = sum(each.running for each in versions)
            waiting = sum(each.waiting for each in versions) + len(self._awaiting_version)
            return EngineStats(running=running, waiting=waiting)

    # with the lock held

    def _find(self, wanted: str) -> Version | None:
        """Return the version for a request; None if it waits for one. Raises VersionNotFound, Unavailable."""
        if wanted in self._versions:
            return self._versions[wanted]
        if not wanted and self._versions:
            return next(reversed(self._versions.values()))
        if self._awaiting:
            return None
        if wanted:
            raise self._not_found(wanted)
        raise Unavailable(f"no version of {self.name} is ready")

    def _find_sequence(self, request: EngineRequest, work: Infer) -> Version | None:
        """Return the version on which a sequence has begun, even if it is being closed."""
        if work.sequence is None or work.sequence.start:
            return None
        key = (request.tenant, work.sequence.id)
        versions = [*self._versions.values(), *self._closing]
        return next((each for each in versions if work.version in ("", each.version) and each.knows(key)), None)

    def _not_found(self, version: str) -> VersionNotFound:
        return VersionNotFound(f"{self.name} has no ready version {version}", param="version")

    def _retire(self, name: str) -> Future[None]:
        """Close a version, if there is one of that name."""
        version = self._versions.pop(name, None)
        if version is None:
            closed: Future[None] = Future()
            closed.set_result(None)
            return closed
        version.close()
        self._closing.append(version)
        version.closed.add_done_callback(lambda _: self._closing.remove(version))
        return version.closed

    # without the lock

    def _deliver(self, job: Job, output: EngineOutput) -> None:
        if output.finished:
            with self._lock:
                self._jobs.pop(job.id, None)
        if not job.cancelled:
            job.deliver(output)

    def _run_awaiting(self) -> None:
        """Submit the requests that waited; those whose version is still missing wait on."""
        with self._lock:
            awaiting, self._awaiting_version = self._awaiting_version, {}
        for request, deliver in awaiting.values():
            self._submit_awaited(request, deliver, None)

    def _submit_awaited(self, request: EngineRequest, deliver: Deliver, refusal: HeadraceError | None) -> None:
        try:
            self.submit(request, deliver)
        except (VersionNotFound, Unavailable) as error:
            deliver(EngineOutput(request.id, finished=True, error=refusal or error))
        except HeadraceError as error:
            deliver(EngineOutput(request.id, finished=True, error=error))


def _infer(request: EngineRequest) -> Infer:
    work = request.source.request.work if request.source is not None else None
    if not isinstance(work, Infer):
        raise InvalidRequest("this model takes tensors only", param="model")
    return work
