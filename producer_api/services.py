"""The objects of one API process, wired once and passed to the routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import structlog

from producer_api.admission.services import AdmissionServices, admission_services
from producer_api.auth.authenticator import Authenticator, make_authenticator
from producer_api.http.open_streams import OpenAnswers
from producer_api.http.threads import Threads
from producer_api.metering.usage_settler import UsageSettler
from producer_api.observability.metrics import Metrics, Stopwatch
from producer_api.observability.request_log import AwaitedJobs, RequestFacts, RequestLogger
from shared.accounts.database import Database
from shared.accounts.usage import UsageRecords
from shared.backend import Backend
from shared.ledger.store import Ledger
from shared.protocol import Request
from shared.runtime.timeouts import Timeouts
from shared.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Context(AdmissionServices):
    """The objects of one API process; `body_timeouts` are those of bodies of requests."""

    metrics: Metrics
    open_answers: OpenAnswers
    database: Database
    authenticate: Authenticator
    awaited_jobs: AwaitedJobs
    request_logger: RequestLogger
    threads: Threads
    body_timeouts: Timeouts

    @classmethod
    def from_settings(cls, settings: Settings, backend: Backend, metrics: Metrics) -> Self:
        for collector in backend.collectors():
            metrics.registry.register(collector)
        database = Database.from_settings(settings)
        awaited_jobs = AwaitedJobs()
        return cls(
            **vars(admission_services(settings, backend, metrics)),
            metrics=metrics,
            open_answers=OpenAnswers(metrics.open_answers),
            database=database,
            authenticate=make_authenticator(settings, database),
            awaited_jobs=awaited_jobs,
            request_logger=RequestLogger(metrics, awaited_jobs, backend.tracer),
            threads=Threads(),
            body_timeouts=Timeouts(settings.body_timeout),
        )

    def settler(self) -> UsageSettler | None:
        """None where nothing is metered: in memory."""
        if self.rate_limiter is None or self.backend.limits is None:
            return None
        return UsageSettler(
            self.settings,
            self.backend,
            Ledger.from_settings(self.settings, replace(self.backend.limits, timeout=self.settings.redis_timeout)),
            UsageRecords(self.database),
            self.metrics,
            channel=self.rate_limiter.channel,
            awaited_jobs=self.awaited_jobs,
        )

    async def start(self) -> None:
        """Raises ConfigError, Unavailable where callers are asked for keys and these cannot be looked up."""
        known = {info.name for info in await self.catalog.models()}
        if unknown := self.settings.model_routing.keys() - known:
            log.warning("unknown_models_in_model_routing", models=sorted(unknown), known=sorted(known))
        if self.settings.auth:
            async with self.database.reading():
                pass

    async def close(self) -> None:
        """Wait for what runs in the background, and let go of the database."""
        await self.shadow_copies.close()
        await self.request_control.background.close()
        await self.authenticate.close()
        await self.database.close()
        self.threads.close()

    def note(self, facts: RequestFacts, admitted: Request) -> None:
        """Tell the request log what was admitted."""
        facts.model, facts.priority, facts.job_id = admitted.model, admitted.priority.value, admitted.id
        facts.prompt = excerpt(admitted, self.settings.log_prompts)

    def time(self, facts: RequestFacts, requests: Sequence[Request], *, detached: bool) -> Stopwatch:
        """Start to time the answer that `requests` have together. `detached`: it goes on without its client."""
        stopwatch = Stopwatch(self.metrics, facts.model, requests[0].priority, facts.started)
        facts.answer, facts.detached = stopwatch, detached
        facts.awaited_job_ids = tuple(each.id for each in requests)
        for job_id in facts.awaited_job_ids:
            self.awaited_jobs.begin(job_id)
        return facts.answer


def excerpt(request: Request, most: int) -> str:
    """The first `most` characters of what was asked; none for 0."""
    if not most:
        return ""
    if request.messages is not None:
        return "\n".join(f"{message.role}: {message.content[:most]}" for message in request.messages[:most])[:most]
    return str(request.prompt[:most] if request.prompt else "")[:most]
