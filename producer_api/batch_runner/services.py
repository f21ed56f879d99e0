"""The objects of one batch-runner process, wired once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from producer_api.admission.services import AdmissionServices, admission_services
from producer_api.batch_runner.completion_listener import CompletionListener
from producer_api.observability.tasks_metrics import TasksMetrics
from shared.backend import Backend
from shared.batches.store import Batches
from shared.files.store import Files
from shared.settings import Settings


@dataclass(frozen=True)
class BatchServices(AdmissionServices):
    """Admission, and the stores of batches and files."""

    files: Files
    batches: Batches
    completions: CompletionListener
    metrics: TasksMetrics

    @classmethod
    def from_settings(cls, settings: Settings, backend: Backend) -> Self:
        assert backend.server is not None, "batches need a Redis server"
        metrics = TasksMetrics()
        for collector in backend.collectors():
            metrics.registry.register(collector)
        return cls(
            **vars(admission_services(settings, backend, metrics)),
            files=Files.from_settings(settings, backend),
            batches=Batches.from_settings(settings, backend.server),
            metrics=metrics,
            completions=CompletionListener(backend.token_log, backend.live),
        )
