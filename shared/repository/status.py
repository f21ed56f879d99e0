"""State and statistics of the repository's models, as workers report them and the API tells them."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.models.worker_registry import Task
from shared.repository.spec import ModelSpec

VersionState = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
UNLOADED = "unloaded"  # reason of a version that nothing wants to be loaded, as in Triton


class Duration(msgspec.Struct, frozen=True, array_like=True):
    """Sum of `count` durations, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def plus(self, ns: int) -> Duration:
        """Return the sum with one more duration."""
        return Duration(self.count + 1, self.ns + ns)


class BatchStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Executions of one batch size."""

    batch_size: int
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


class VersionStatistics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Statistics of one version since it was loaded, in the meaning of Triton's statistics extension.

    `last_inference` is in milliseconds since the epoch, 0 before the first. `failures` counts by reason: REJECTED,
    CANCELED, BACKEND, OTHER. `pending` requests have not begun to be executed.
    """

    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    batches: tuple[BatchStatistics, ...] = ()
    failures: dict[str, int] = {}
    pending: int = 0
    memory_bytes: int = 0


class VersionStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a model; `reason` says why it is not ready, `progress` of loading is from 0 to 1."""

    version: str
    state: VersionState
    reason: str = ""
    progress: float = 0.0
    statistics: VersionStatistics = VersionStatistics()


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of a worker's repository. `reason` says why it has no versions, if its description is unusable.

    `task` is None until a model with the backend "headrace" was loaded. A model that may be loaded on demand
    accepts requests while no version is ready.
    """

    name: str
    spec: ModelSpec
    versions: tuple[VersionStatus, ...] = ()
    reason: str = ""
    task: Task | None = "predict"
    on_demand: bool = False

    @property
    def ready(self) -> tuple[VersionStatus, ...]:
        """Return the ready versions, oldest first."""
        return tuple(each for each in self.versions if each.state == "READY")
