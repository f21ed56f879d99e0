"""Which limits a request is charged to when it is admitted, and what a refusal says. The ledger is what counts.

Who has no plan has the default one. A key's limits are its own, a user's are of its key, an address's of the
address alone. What joins another request under its Idempotency-Key is not charged.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Self

import structlog
from limits import parse_many

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.observability.metrics import Metrics
from shared.errors import ConfigError, ExceedsRateLimit, HeadraceError, QuotaExceeded, RateLimited, Unavailable
from shared.ledger.store import Behind, Ledger, Refused
from shared.ledger.types import DAY_S, Charge, End, Entry, Limit, Standing
from shared.plans import Plan
from shared.protocol import Request
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.settings import Settings
from shared.token_log.interface import RequestRecord
from shared.validation.request_limits import token_estimate

UNLIMITED = Plan(concurrent=None, tokens_per_day=None)
BACKLOG_WAIT = 5.0  # seconds until usage records may have been written

log = structlog.get_logger(__name__)


class Meter:
    """Charges requests.

    Args:
        ledger: counts, in no more than `rate_limit_timeout`.
    """

    def __init__(self, settings: Settings, ledger: Ledger, metrics: Metrics) -> None:
        self.channel = keys.notify_channel(f"api-{secrets.token_hex(8)}")  # hears of the ends of what is charged
        self._settings = settings
        self._ledger = ledger
        self._metrics = metrics

    @classmethod
    def of(cls, settings: Settings, server: RedisServer, metrics: Metrics) -> Self:
        return cls(settings, Ledger.from_settings(settings, server), metrics)

    def charges(self, requests: Sequence[Request], principal: Principal) -> list[Charge]:
        """What requests that are asked together are to be charged: as one request, with the tokens of all.

        Nothing where none of it is counted. Raises ExceedsRateLimit for what no wait makes room for.
        """
        return self._countable(
            [
                self._charge(each, principal, self._limits(each, principal, counted=each is requests[0]))
                for each in requests
            ]
        )

    async def charge(self, charges: Sequence[Charge], principal: Principal) -> None:
        """Charge all of them or none.

        Raises RateLimited, QuotaExceeded; Unavailable where what is asked for cannot be counted.
        """
        client = principal.client
        try:
            client.standings = await self._ledger.charge(*charges) or client.standings
        except Refused as refused:
            client.standings = refused.first
            raise self._refusal(refused.standings) from None
        except Behind:
            self._count("backlog")
            raise Unavailable("usage records cannot be written at present", retry_after=BACKLOG_WAIT) from None
        except Unavailable as error:
            if self._settings.rate_limit_failure == "closed":
                self._count("unavailable")
                raise
            self._count("uncounted")
            log.warning("request_not_metered", job_id=charges[0].job_id, error=error.message)

    async def admit_derived(self, request: Request, principal: Principal) -> None:
        """Charge a request that was not admitted with others, to its key's budget alone. Raises as those do."""
        limits = _budget(self._plan(principal), _subject(principal), token_estimate(request))
        if charges := self._countable([self._charge(request, principal, limits)]):
            await self.charge(charges, principal)

    async def look(self, principal: Principal, client: Client) -> Sequence[Standing]:
        """Where the limits are of a caller who was charged nothing; nothing where they cannot be counted now."""
        try:
            limits = self._of_caller(principal, client.address, "", 0)
            return await self._ledger.look(limits) if limits else ()
        except HeadraceError:
            return ()

    async def release(self, job_ids: Sequence[str]) -> None:
        """Give back what was charged and then not queued."""
        await self._ledger.settle([(job_id, None, None) for job_id in job_ids])

    async def settle(self, record: RequestRecord) -> None:
        """Charge what a request took that has ended, and keep it for its usage record."""
        end = End.from_record(record)
        await self._ledger.settle([(record.id, end.tokens, end if self._settings.usage else None)])

    def _limits(self, request: Request, principal: Principal, *, counted: bool) -> list[Limit]:
        """`counted`: as a request, not only with its tokens."""
        found = self._of_caller(principal, principal.client.address, request.user, token_estimate(request))
        return found if counted else [limit for limit in found if limit.unit == "tokens"]

    def _of_caller(self, principal: Principal, address: str, user: str, cost: int) -> list[Limit]:
        """All that hold for a request of `cost` tokens."""
        settings = self._settings
        plan, subject = self._plan(principal), _subject(principal)
        found = [*self._windows(subject, plan.requests, plan.tokens, cost), *_budget(plan, subject, cost)]
        if plan.concurrent is not None:
            found.append(Limit("slots", f"{subject}:slots", plan.concurrent, 0, 1))
        if user:
            name = f"{subject}:user:{hashlib.sha256(user.encode()).hexdigest()[:32]}"
            found += self._windows(name, settings.user_requests, settings.user_tokens, cost)
        if address:
            found += self._windows(f"address:{address}", settings.address_requests, "", cost)
        return found

    def _plan(self, principal: Principal) -> Plan:
        """Raises ConfigError for a key whose plan the settings do not have."""
        name = principal.plan or self._settings.default_plan
        plan = self._settings.plans.get(name) if name else UNLIMITED
        if plan is None:
            raise ConfigError(f"the server's settings have no plan {name!r}")
        return plan

    def _windows(self, name: str, requests: str, tokens: str, cost: int) -> list[Limit]:
        strategy = self._settings.rate_limit_strategy
        found = []
        for unit, windows, each in (("requests", requests, 1), ("tokens", tokens, cost)):
            for amount, seconds in _parsed(windows):
                place = f"{name}:{unit}:{seconds}:{strategy}"
                found.append(Limit(strategy, place, amount, seconds * 1000, each, int(unit == "tokens")))
        return found

    def _charge(self, request: Request, principal: Principal, limits: Sequence[Limit]) -> Charge:
        entry = Entry(
            tenant=request.tenant,
            model=request.model,
            key_id=principal.key_id,
            user=request.user,
            http_request_id=principal.client.http_request_id,
            trace_id=principal.client.trace_id,
            channel=self.channel,
        )
        return Charge(request.id, entry, limits)

    def _countable(self, charges: list[Charge]) -> list[Charge]:
        """Those, if anything of them is to be counted. Raises ExceedsRateLimit."""
        if not self._settings.usage and not any(charge.limits for charge in charges):
            return []
        self._check_size(charges)
        return charges

    def _check_size(self, charges: Sequence[Charge]) -> None:
        """Raises ExceedsRateLimit for what no wait makes room for."""
        for limit in charges[0].limits:
            if limit.unit != "tokens":
                continue
            cost = sum(each.cost for charge in charges for each in charge.limits if each.name == limit.name)
            if cost > limit.amount:
                self._count("too_large")
                raise ExceedsRateLimit(
                    f"the request may take {cost} tokens, and {_worded(limit)} are all that is allowed"
                )

    def _refusal(self, standings: Sequence[Standing]) -> HeadraceError:
        """What has no room for longest; a budget before anything else."""
        full = max(
            (each for each in standings if each.wait > 0),
            key=lambda each: (each.limit.strategy == "day", each.wait),
        )
        limit = full.limit
        if limit.strategy == "day":
            self._count("budget")
            resets = datetime.fromtimestamp(round((time.time() + full.wait) / DAY_S) * DAY_S, UTC)
            return QuotaExceeded(
                f"{full.remaining} of the key's {limit.amount} tokens a day are left, and the request may take "
                f"{limit.cost}; the day ends at {resets:%Y-%m-%dT%H:%M:%SZ}",
                retry_after=full.wait,
            )
        if limit.strategy == "slots":
            self._count("concurrent")
            return RateLimited(f"{limit.amount} requests of this key are under way already", retry_after=full.wait)
        self._count(_reason(limit))
        return RateLimited(
            f"the limit of {_worded(limit)} is reached: try again in {math.ceil(full.wait)} s",
            retry_after=full.wait,
        )

    def _count(self, reason: str) -> None:
        self._metrics.limited.labels(reason).inc()


@cache
def _parsed(windows: str) -> tuple[tuple[int, int], ...]:
    """Amount and seconds of each; of a setting, of which there are few."""
    return tuple((window.amount, window.get_expiry()) for window in parse_many(windows)) if windows else ()


def _subject(principal: Principal) -> str:
    return f"key:{principal.key_id}" if principal.key_id else f"tenant:{principal.tenant}"


def _budget(plan: Plan, subject: str, cost: int) -> list[Limit]:
    if plan.tokens_per_day is None:
        return []
    return [Limit("day", f"{subject}:day", plan.tokens_per_day, int(DAY_S * 1000), cost, 1)]


def _reason(limit: Limit) -> str:
    """By what a refusal is counted; a bounded set."""
    if limit.name.startswith("address:"):
        return "address"
    return "user" if ":user:" in limit.name else limit.unit


def _worded(limit: Limit) -> str:
    return f"{limit.amount} {limit.unit} in {limit.period // 1000} s"
