"""The objects of one batch-runner process, wired once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from producer_api.admission.services import AdmissionServices, admission_services
from producer_api.batch_runner.completion_listener import CompletionListener
from producer_api.observability.metrics import Metrics
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

    @classmethod
    def from_settings(cls, settings: Settings, backend: Backend) -> Self:
        assert backend.server is not None, "batches need a Redis server"
        metrics = Metrics(CollectorRegistry())  # this process serves no /metrics
        return cls(
            **vars(admission_services(settings, backend, metrics)),
            files=Files.from_settings(settings, backend),
            batches=Batches.from_settings(settings, backend.server),
            completions=CompletionListener(backend.token_log, backend.live),
        )
