"""The objects that admit requests, wired the same way for the API and for the batch runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from producer_api.admission.gateway import Gateway
from producer_api.admission.idempotency import IdempotencyKeys
from producer_api.admission.model_catalog import ModelCatalog
from producer_api.admission.request_control import RequestControl
from producer_api.admission.shadow_copies import ShadowCopies
from producer_api.metering.rate_limiter import RateLimiter
from shared.backend import Backend
from shared.metrics.series import Values
from shared.settings import Settings
from shared.validation.request_limits import Limits


class AdmissionMetrics(Protocol):
    """Counters of admission."""

    @property
    def limited(self) -> Values: ...

    @property
    def duplicates(self) -> Values: ...


@dataclass(frozen=True)
class AdmissionServices:
    """Objects that admit the requests of one process; `rate_limiter` is None for a backend in memory."""

    settings: Settings
    backend: Backend
    catalog: ModelCatalog
    idempotency_keys: IdempotencyKeys
    rate_limiter: RateLimiter | None
    request_control: RequestControl
    shadow_copies: ShadowCopies
    gateway: Gateway


def admission_services(settings: Settings, backend: Backend, metrics: AdmissionMetrics) -> AdmissionServices:
    """Wire the admission of one process."""
    catalog = ModelCatalog(backend, settings)
    kept = max(settings.result_ttl, settings.response_ttl)
    keys = IdempotencyKeys(backend.locks, ttl=settings.request_ttl + kept, duplicates=metrics.duplicates)
    limiter = (
        None if backend.limits is None else RateLimiter.from_settings(settings, backend.limits, metrics.limited)
    )
    control = RequestControl(backend, limiter)
    shadows = ShadowCopies(backend, catalog, Limits.from_settings(settings))
    return AdmissionServices(
        settings=settings,
        backend=backend,
        catalog=catalog,
        idempotency_keys=keys,
        rate_limiter=limiter,
        request_control=control,
        shadow_copies=shadows,
        gateway=Gateway(
            settings, backend, keys=keys, catalog=catalog, limiter=limiter, control=control, shadows=shadows
        ),
    )
