"""What the routes are handed: the parts of one API process, wired once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from producer_api.admission.gateway import Gateway
from producer_api.admission.idempotency import IdempotencyKeys
from producer_api.admission.model_catalog import Catalog
from producer_api.admission.request_control import Admitted
from producer_api.auth.authenticator import Authenticator, authenticator
from producer_api.http.open_streams import OpenAnswers
from producer_api.http.threads import Threads
from producer_api.metering.rate_limiter import Meter
from producer_api.metering.usage_settler import Settler
from producer_api.observability.metrics import Metrics, Stopwatch
from producer_api.observability.request_facts import Told
from producer_api.observability.request_log import Facts, Journal
from shared.accounts.database import Database
from shared.accounts.usage import UsageRecords
from shared.backend import Backend
from shared.ledger.store import Ledger
from shared.protocol import Request
from shared.settings import Settings


@dataclass(frozen=True)
class Context:
    """One API process's parts."""

    settings: Settings
    backend: Backend
    catalog: Catalog
    gateway: Gateway
    admitted: Admitted
    keys: IdempotencyKeys
    metrics: Metrics
    open_answers: OpenAnswers
    database: Database
    authenticate: Authenticator
    told: Told
    journal: Journal
    meter: Meter | None
    threads: Threads

    @classmethod
    def of(cls, settings: Settings, backend: Backend, metrics: Metrics) -> Context:
        if backend.server is not None:
            metrics.registry.register(backend.server.foreign)
        catalog = Catalog(backend.registry, settings)
        database = Database.of(settings)
        kept = max(settings.result_ttl, settings.response_ttl)
        keys = IdempotencyKeys(backend.holds, ttl=settings.request_ttl + kept)
        meter = None if backend.limits is None else Meter.of(settings, backend.limits, metrics)
        admitted = Admitted(backend, meter)
        told = Told()
        return cls(
            settings=settings,
            backend=backend,
            catalog=catalog,
            gateway=Gateway(settings, backend, keys=keys, catalog=catalog, meter=meter, admitted=admitted),
            admitted=admitted,
            keys=keys,
            metrics=metrics,
            open_answers=OpenAnswers(metrics.open_answers),
            database=database,
            authenticate=authenticator(settings, database),
            told=told,
            journal=Journal(metrics, told),
            meter=meter,
            threads=Threads(),
        )

    def settler(self) -> Settler | None:
        """None where nothing is metered: in memory."""
        if self.meter is None or self.backend.limits is None:
            return None
        return Settler(
            self.settings,
            self.backend,
            Ledger.of(self.settings, replace(self.backend.limits, timeout=self.settings.redis_timeout)),
            UsageRecords(self.database),
            self.metrics,
            channel=self.meter.channel,
            told=self.told,
        )

    async def start(self) -> None:
        """Raises ConfigError, Unavailable where callers are asked for keys and these cannot be looked up."""
        if self.settings.auth:
            async with self.database.reading():
                pass

    async def close(self) -> None:
        """Wait for what runs in the background, and let go of the database."""
        await self.admitted.upkeep.close()
        await self.authenticate.close()
        await self.database.close()
        self.threads.close()

    def note(self, facts: Facts, admitted: Request) -> None:
        """Tell the request log what was admitted."""
        facts.model, facts.job = admitted.model, admitted.id
        facts.prompt = excerpt(admitted, self.settings.log_prompts)

    def time(self, facts: Facts, requests: Sequence[Request], *, lasting: bool) -> Stopwatch:
        """Start to time the answer that `requests` have together. `lasting`: it goes on without its client."""
        facts.answer, facts.lasting = Stopwatch(self.metrics, facts.model, facts.started), lasting
        facts.awaited = tuple(each.id for each in requests)
        for job_id in facts.awaited:
            self.told.begin(job_id)
        return facts.answer


def excerpt(request: Request, most: int) -> str:
    """The first `most` characters of what was asked; none for 0."""
    if not most:
        return ""
    if request.messages is not None:
        return "\n".join(f"{message.role}: {message.content[:most]}" for message in request.messages[:most])[:most]
    return str(request.prompt[:most] if request.prompt else "")[:most]
