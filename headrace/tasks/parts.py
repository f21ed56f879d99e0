"""What the tasks are handed: the parts of one tasks process, wired once."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from headrace.tasks.ends import Ends
from producer_api.gateway.admit import Gateway
from producer_api.gateway.admitted import Admitted
from producer_api.gateway.catalog import Catalog
from producer_api.gateway.idempotency import IdempotencyKeys
from producer_api.gateway.meter import Meter
from producer_api.metrics import Metrics
from shared.backend import Backend
from shared.batches.records import Batches
from shared.config import Settings
from shared.files.store import Files


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
        keys = IdempotencyKeys(backend.holds, ttl=settings.request_ttl + settings.result_ttl)
        catalog = Catalog(backend.registry, settings)
        meter = Meter.of(settings, backend.limits, metrics)
        admitted = Admitted(backend, meter)
        return cls(
            settings=settings,
            backend=backend,
            gateway=Gateway(settings, backend, keys=keys, catalog=catalog, meter=meter, admitted=admitted),
            admitted=admitted,
            files=Files.of(settings, backend),
            batches=Batches.of(settings, backend.server),
            ends=Ends(backend.token_log, backend.live),
        )
