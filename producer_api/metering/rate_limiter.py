"""Rate limiter: chooses the limits that an admitted request is charged to, and words the refusals.

The ledger does the counting. A caller without a plan has the default plan. Each API key has its own limits, each
`user` has limits within its key, and each address has limits across all keys. A request that joins another under
its Idempotency-Key is not charged.
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
from shared.errors import ConfigError, ExceedsRateLimit, HeadraceError, QuotaExceeded, RateLimited, Unavailable
from shared.ledger.store import Behind, Ledger, Refused
from shared.ledger.types import DAY_S, Charge, End, Entry, Limit, Standing
from shared.metrics.series import Values
from shared.plans import Plan
from shared.protocol import Request
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.settings import Settings
from shared.token_log.interface import RequestRecord
from shared.validation.token_estimate import token_estimate

UNLIMITED = Plan(concurrent=None, tokens_per_day=None)
BACKLOG_RETRY_AFTER_S = 5.0  # by then the backlog of usage records may have been written

log = structlog.get_logger(__name__)


class RateLimiter:
    """Rate limiter of one process.

    Args:
        ledger: counts, within `rate_limit_timeout`.

    Attributes:
        channel: the ends of the requests that this process charged are published on it.
    """

    def __init__(self, settings: Settings, ledger: Ledger, limited: Values) -> None:
        self.channel = keys.notify_channel(f"api-{secrets.token_hex(8)}")
        self._settings = settings
        self._ledger = ledger
        self._limited = limited

    @classmethod
    def from_settings(cls, settings: Settings, server: RedisServer, limited: Values) -> Self:
        return cls(settings, Ledger.from_settings(settings, server), limited)

    def charges(self, requests: Sequence[Request], principal: Principal) -> list[Charge]:
        """Return the charges of requests that belong together: one request with the tokens of all.

        Empty if nothing is counted. Raises ExceedsRateLimit if the tokens exceed a limit even when it is unused.
        """
        return self._countable(
            [
                self._charge(each, principal, self._limits(each, principal, counted=each is requests[0]))
                for each in requests
            ]
        )

    async def charge(self, charges: Sequence[Charge], principal: Principal) -> None:
        """Charge all of them or none.

        Raises RateLimited, QuotaExceeded; Unavailable if a charge must be counted and cannot be.
        """
        client = principal.client
        try:
            client.standings = await self._ledger.charge(*charges) or client.standings
        except Refused as refused:
            client.standings = refused.first
            raise self._refusal(refused.standings) from None
        except Behind:
            self._count("backlog")
            raise Unavailable("usage records cannot be written now", retry_after=BACKLOG_RETRY_AFTER_S) from None
        except Unavailable as error:
            if self._settings.rate_limit_failure == "closed":
                self._count("unavailable")
                raise
            self._count("uncounted")
            log.warning("request_not_metered", job_id=charges[0].job_id, error=error.message)

    async def admit_derived(self, request: Request, principal: Principal) -> None:
        """Charge a request that was not charged with the one it derives from, to its key's budget alone.

        Raises as `charge` does, and ExceedsRateLimit.
        """
        limits = _budget(self._plan(principal), _subject(principal), token_estimate(request))
        if charges := self._countable([self._charge(request, principal, limits)]):
            await self.charge(charges, principal)

    async def standings(self, principal: Principal, client: Client) -> Sequence[Standing]:
        """Return the state of a caller's limits without charging it; empty if the ledger cannot be reached."""
        try:
            limits = self._caller_limits(principal, client.address, "", 0)
            return await self._ledger.look(limits) if limits else ()
        except HeadraceError:
            return ()

    async def release(self, job_ids: Sequence[str]) -> None:
        """Refund requests that were charged but not queued."""
        await self._ledger.settle([(job_id, None, None) for job_id in job_ids])

    async def settle(self, record: RequestRecord) -> None:
        """Charge what an ended request used, and keep it for its usage record."""
        end = End.from_record(record)
        await self._ledger.settle([(record.id, end.tokens, end if self._settings.usage else None)])

    def _limits(self, request: Request, principal: Principal, *, counted: bool) -> list[Limit]:
        """Return the limits of a request. `counted`: those on requests too, not only those on tokens."""
        found = self._caller_limits(principal, principal.client.address, request.user, token_estimate(request))
        return found if counted else [limit for limit in found if limit.unit == "tokens"]

    def _caller_limits(self, principal: Principal, address: str, user: str, cost: int) -> list[Limit]:
        """Return all limits that apply to a request of `cost` tokens."""
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
        """Return the caller's plan. Raises ConfigError if the settings do not define it."""
        name = principal.plan or self._settings.default_plan
        plan = self._settings.plans.get(name) if name else UNLIMITED
        if plan is None:
            raise ConfigError(f"the plan {name!r} of this API key is not in the server's settings")
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
        """Return the charges if anything of them is counted, else none. Raises ExceedsRateLimit."""
        if not self._settings.usage and not any(charge.limits for charge in charges):
            return []
        self._check_size(charges)
        return charges

    def _check_size(self, charges: Sequence[Charge]) -> None:
        """Raise ExceedsRateLimit if the tokens exceed a limit even when it is unused."""
        for limit in charges[0].limits:
            if limit.unit != "tokens":
                continue
            cost = sum(each.cost for charge in charges for each in charge.limits if each.name == limit.name)
            if cost > limit.amount:
                self._count("too_large")
                raise ExceedsRateLimit(f"the request may use {cost} tokens, but the limit is {_worded(limit)}")

    def _refusal(self, standings: Sequence[Standing]) -> HeadraceError:
        """Return the error for the limit with the longest wait; a daily budget comes before the others."""
        full = max(
            (each for each in standings if each.wait > 0),
            key=lambda each: (each.limit.strategy == "day", each.wait),
        )
        limit = full.limit
        if limit.strategy == "day":
            self._count("budget")
            resets = datetime.fromtimestamp(round((time.time() + full.wait) / DAY_S) * DAY_S, UTC)
            return QuotaExceeded(
                f"{full.remaining} of the key's {limit.amount} tokens per day are left, but the request may use "
                f"{limit.cost}; the budget resets at {resets:%Y-%m-%dT%H:%M:%SZ}",
                retry_after=full.wait,
            )
        if limit.strategy == "slots":
            self._count("concurrent")
            return RateLimited(f"this key already has {limit.amount} requests in progress", retry_after=full.wait)
        self._count(_reason(limit))
        return RateLimited(
            f"the limit of {_worded(limit)} is reached; try again in {math.ceil(full.wait)} s",
            retry_after=full.wait,
        )

    def _count(self, reason: str) -> None:
        self._limited.labels(reason).inc()


@cache
def _parsed(windows: str) -> tuple[tuple[int, int], ...]:
    """Return amount and seconds of each window of a setting. Settings are few, so the cache is bounded."""
    return tuple((window.amount, window.get_expiry()) for window in parse_many(windows)) if windows else ()


def _subject(principal: Principal) -> str:
    return f"key:{principal.key_id}" if principal.key_id else f"tenant:{principal.tenant}"


def _budget(plan: Plan, subject: str, cost: int) -> list[Limit]:
    if plan.tokens_per_day is None:
        return []
    return [Limit("day", f"{subject}:day", plan.tokens_per_day, int(DAY_S * 1000), cost, 1)]


def _reason(limit: Limit) -> str:
    """Return the label that a refusal is counted under; one of a bounded set."""
    if limit.name.startswith("address:"):
        return "address"
    return "user" if ":user:" in limit.name else limit.unit


def _worded(limit: Limit) -> str:
    return f"{limit.amount} {limit.unit} per {limit.period // 1000} s"
