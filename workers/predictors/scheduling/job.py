"""A request on a version of a model, its sequence, and the batch that it becomes a part of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.protocol import Infer, Tensor
from workers.engine.interface import EngineOutput, EngineRequest
from workers.predictors.interface import Array
from workers.predictors.tensors.inputs import CheckedInputs

Deliver = Callable[[EngineOutput], None]
SequenceKey = tuple[str, int | str]  # tenant, and id within it


@dataclass(eq=False)
class Job:
    """One request on one version of a model.

    Attributes:
        deliver: takes its outputs, from any thread.
        cancelled: its outputs are not wanted any longer.
        cache_key: of its response in the response cache; empty without one.
        cached: its response, found in the cache.
        lookup_ns: how long that look-up took.
    """

    request: EngineRequest
    work: Infer
    checked: CheckedInputs
    deliver: Deliver
    arrived_ns: int
    level: int = 0
    expires_ns: int | None = None
    cancelled: bool = False
    cache_key: bytes = b""
    cached: tuple[Tensor, ...] | None = None
    lookup_ns: int = 0

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def starts_sequence(self) -> bool:
        return self.work.sequence is not None and self.work.sequence.start


@dataclass(eq=False)
class Sequence:
    """One sequence.

    Attributes:
        jobs: its requests that wait, in order.
        instance: that has a place for it; None while it waits for one.
        running: a request of it is being executed.
        ending: its last request has arrived.
        idle_since: when its last request arrived or ended.
        state: arrays for the state inputs of its next request, by name; empty before the first.
    """

    key: SequenceKey
    jobs: deque[Job] = field(default_factory=deque)
    instance: int | None = None
    running: bool = False
    ending: bool = False
    idle_since: int = 0
    state: dict[str, Array] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Return whether its next request may be executed."""
        return bool(self.jobs) and not self.running

    @property
    def idle(self) -> bool:
        return not self.jobs and not self.running

    def take(self) -> Job:
        """Begin the execution of the next request. One that starts the sequence again finds no state."""
        job = self.jobs.popleft()
        self.running = True
        if job.starts_sequence:
            self.state = {}
        return job


@dataclass(frozen=True)
class Row:
    """Place in a batch: a request, or an empty slot of an instance whose slots belong to sequences."""

    job: Job | None
    sequence: Sequence | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Requests to execute together on one instance.

    Attributes:
        positional: the rows are slots of sequences, and keep their places.
    """

    rows: tuple[Row, ...]
    instance: int = 0
    positional: bool = False
    jobs: tuple[Job, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", tuple(row.job for row in self.rows if row.job is not None))

    def alone(self, job: Job) -> Batch:
        """Return the batch of one of the requests."""
        place = next(number for number, row in enumerate(self.rows) if row.job is job)
        before = [Row(None, row.sequence) for row in self.rows[:place]] if self.positional else []
        return Batch((*before, self.rows[place]), self.instance, self.positional)

    def wanted_outputs(self) -> tuple[str, ...]:
        """Return the outputs that any of the requests wants; empty for all."""
        if not all(job.work.outputs for job in self.jobs):
            return ()
        return tuple(dict.fromkeys(name for job in self.jobs for name in job.work.outputs))
