"""What the tasks are handed: the parts of one tasks process, wired once."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from producer_api.admission.gateway import Gateway
from producer_api.admission.idempotency import IdempotencyKeys
from producer_api.admission.model_catalog import Catalog
from producer_api.admission.request_control import Admitted
from producer_api.batch_runner.completion_listener import Ends
from producer_api.metering.rate_limiter import Meter
from producer_api.observability.metrics import Metrics
from shared.backend import Backend
from shared.batches.store import Batches
from shared.files.store import Files
from shared.settings import Settings


@dataclass(frozen=True)
class Parts:
    """One tasks process's parts."""

    settings: Settings
    backend: Backend
    gateway: Gateway
    admitted: Admitted
    files: Files
    batches: Batches
    ends: Ends

    @classmethod
    def of(cls, settings: Settings, backend: Backend) -> Parts:
        assert backend.server is not None, "tasks need a server"
        assert backend.limits is not None
        metrics = Metrics(CollectorRegistry())  # nobody reads them
        keys = IdempotencyKeys(backend.locks, ttl=settings.request_ttl + settings.result_ttl)
        catalog = Catalog(backend.registry, settings)
        meter = Meter.of(settings, backend.limits, metrics)
        admitted = Admitted(backend, meter)
        return cls(
            settings=settings,
            backend=backend,
            gateway=Gateway(settings, backend, keys=keys, catalog=catalog, meter=meter, admitted=admitted),
            admitted=admitted,
            files=Files.from_settings(settings, backend),
            batches=Batches.from_settings(settings, backend.server),
            ends=Ends(backend.token_log, backend.live),
        )
