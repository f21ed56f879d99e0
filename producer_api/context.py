"""What the routes are handed: the parts of one API process, wired once."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Depends
from fastapi.params import Depends as Dependency
from starlette.requests import Request

from producer_api.attend import Attendance
from producer_api.gateway.admit import Gateway
from producer_api.gateway.authenticate import Authenticator, authenticator
from producer_api.gateway.catalog import Catalog
from producer_api.gateway.idempotency import IdempotencyKeys
from producer_api.gateway.rules import Rule
from producer_api.metrics import Metrics, Stopwatch
from producer_api.middleware import Facts
from shared.accounts.database import Database
from shared.backend import Backend
from shared.config import Settings
from shared.protocol import Request as InferenceRequest


@dataclass(frozen=True)
class Context:
    """One API process's parts."""

    settings: Settings
    backend: Backend
    catalog: Catalog
    gateway: Gateway
    keys: IdempotencyKeys
    metrics: Metrics
    attendance: Attendance
    database: Database
    authenticate: Authenticator

    @classmethod
    def of(cls, settings: Settings, backend: Backend, metrics: Metrics) -> Context:
        catalog = Catalog(backend.registry, settings)
        database = Database.of(settings)
        kept = max(settings.result_ttl, settings.response_ttl)
        keys = IdempotencyKeys(backend.holds, ttl=settings.request_ttl + kept)
        return cls(
            settings=settings,
            backend=backend,
            catalog=catalog,
            gateway=Gateway(settings, backend, keys, catalog),
            keys=keys,
            metrics=metrics,
            attendance=Attendance(metrics.open_answers),
            database=database,
            authenticate=authenticator(settings, database),
        )

    def allow(self, group: str, *, admin: bool = False) -> Dependency:
        """The rule of a router or route: for callers that may use `group`."""
        rule: Dependency = Depends(Rule(group, self.authenticate, admin=admin))
        return rule

    async def start(self) -> None:
        """Raises ConfigError, Unavailable where callers are asked for keys and these cannot be looked up."""
        if self.settings.auth:
            async with self.database.reading():
                pass

    async def close(self) -> None:
        """Wait for what runs in the background, and let go of the database."""
        await self.gateway.close()
        await self.authenticate.close()
        await self.database.close()

    def note(self, request: Request, admitted: InferenceRequest) -> Facts:
        """Tell the request log what was admitted."""
        facts: Facts = request.state.facts
        facts.model, facts.job = admitted.model, admitted.id
        return facts

    def time(self, facts: Facts) -> Stopwatch:
        """Start to time the answer of what `note` noted."""
        facts.answer = Stopwatch(self.metrics, facts.model, facts.started)
        return facts.answer
