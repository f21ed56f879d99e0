"""Admission: checks a request, gives it an id, charges it and queues it, for every API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from producer_api.admission.deadline import RedisDeadline, run_alongside
from producer_api.admission.idempotency import (
    HEADER,
    IdempotencyKey,
    IdempotencyKeys,
    Identity,
    derived_id,
    derived_seed,
)
from producer_api.admission.model_catalog import ModelCatalog
from producer_api.admission.publisher import Publisher
from producer_api.admission.request_control import RequestControl
from producer_api.admission.shadow_copies import ShadowCopies
from producer_api.admission.traffic import alike, as_recorded, direction_for, placed
from producer_api.admission.turn import with_turn
from producer_api.auth.principal import Principal
from producer_api.metering.rate_limiter import RateLimiter
from shared.backend import Backend
from shared.errors import HeadraceError, NotFound, Unavailable
from shared.protocol import Request, RequestState, adapted_fingerprint
from shared.redis.keys import notify_channel
from shared.settings import Settings
from shared.token_log.interface import Adoption, Keepsake, RequestRecord
from shared.validation.request_limits import Limits, check_request, check_together, fit_to_model, lower_max_tokens
from shared.validation.ttft_target import with_turn_of
from shared.webhooks.interface import Hook, Webhook

STALE_KEY_AGE_S = 60.0  # a key this old whose request does not exist is released
WEBHOOK_CHANNEL = notify_channel("webhooks")  # carries the ids of ended requests that have a webhook
FIRST_CHECK_DELAY_S = 1.0  # before a webhook is first checked, unless its request ends sooner
KEY_RETRY_DELAYS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.2)  # waits for the holder of a key to queue its request


@dataclass(frozen=True)
class Admission:
    """A queued request and those queued with it.

    `joined`: the request existed already, under the same idempotency key or derived id.
    """

    request: Request
    joined: bool = False
    others: tuple[Request, ...] = ()

    @property
    def requests(self) -> tuple[Request, ...]:
        return (self.request, *self.others)


class Gateway:
    """Admits requests to the queue.

    Args:
        settings: the limits.
        backend: the queue, the token log and the webhooks.
        keys: the idempotency keys.
        catalog: the models that a request may name.
        limiter: charges admitted requests; None if there are neither limits nor usage records.
        control: cancels requests that turn out to be useless, in the background.
        shadows: makes the shadow copies of requests.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        *,
        keys: IdempotencyKeys,
        catalog: ModelCatalog,
        limiter: RateLimiter | None,
        control: RequestControl,
        shadows: ShadowCopies,
    ) -> None:
        self._limits, self._redis_deadline = Limits.from_settings(settings), RedisDeadline()
        self._transport = backend.transport
        self._publisher = Publisher.from_settings(settings, backend)
        self._token_log = backend.token_log
        self._keys = keys
        self._catalog = catalog
        self._limiter = limiter
        self._webhooks = backend.webhooks
        self._control = control
        self._shadows = shadows

    async def submit(
        self,
        draft: Request,
        *,
        principal: Principal,
        seed: int | None,
        timeout_s: float | None = None,
        key: IdempotencyKey | None = None,
        resuming: bool = False,
        hook: Hook | None = None,
        keepsake: Keepsake | None = None,
        others: Sequence[Request] = (),
    ) -> Admission:
        """Queue `draft` with a new id, creation time and seed, for the model that its name leads to; return it so.

        Args:
            draft: what the client asked for; its id, created_at and seed are ignored.
            principal: the caller.
            seed: the client's seed, if it sent one.
            timeout_s: how long the request may take; replaces the draft's deadline.
            key: queue the request once under this key.
            resuming: only join an existing request of the key.
            hook: the webhook to call when the request ends.
            keepsake: data to store with the request.
            others: drafts that will be derived from this one and are charged with it.

        Raises:
            PermissionDenied: the caller may not use the model or the class.
            InvalidRequest, ModelNotFound: the request cannot be served.
            IdempotencyKeyReused: the key belongs to another request.
            NotFound: there is no answer to resume.
            RateLimited, QuotaExceeded: one of the caller's limits is reached.
            QueueFull, TenantQueueFull, TargetUnreachable, Unavailable: try again later; with `retry_after`.
        """
        draft = with_turn(draft, principal)
        drawn = secrets.randbits(63) if seed is None else seed
        check_request(Identity("", 0.0, drawn).complete(draft, None), self._limits)
        queue = partial(self._queue, principal=principal, hook=hook, keepsake=keepsake, others=others)
        with self._redis_deadline():
            direction = await direction_for(self._catalog, draft.model, principal)
            complete = partial(direction.complete, draft, timeout_s)
            identity = Identity.new(await self._token_log.now(), drawn, key)
            if key is None:
                admission = await self._submit_new(complete(identity), queue)
            else:
                admission = await self._submit_once(complete, key, identity, queue, resuming=resuming)
        self._keys.count_joined(joined=admission.joined)
        self._shadows.start(admission.request, None if admission.joined else direction.shadow)
        return admission

    async def _submit_new(self, request: Request, queue: Callable[[Request], Awaitable[None]]) -> Admission:
        """Queue a request without a key; if it is refused, delete its log in the background."""
        request = await self._fit(request)
        try:
            await queue(request)
        except BaseException:  # also the deadline of this call
            self._control.background.start(self._token_log.forget(request.id))
            raise
        return Admission(request)

    async def submit_all(
        self,
        drafts: Sequence[Request],
        *,
        principal: Principal,
        seed: int | None,
        timeout_s: float | None = None,
        key: IdempotencyKey | None = None,
        resuming: bool = False,
    ) -> Admission:
        """Queue drafts that belong together, as `submit` does; if one is refused, cancel those queued before it.

        Without a `seed` each draft gets its own.
        """
        self.check_together(drafts, seed)
        first, *rest = drafts
        admission = await self.submit(
            first, principal=principal, seed=seed, timeout_s=timeout_s, key=key, resuming=resuming, others=rest
        )
        request = admission.request
        others: list[Request] = []
        try:
            for number, draft in enumerate(rest, 1):
                own = derived_seed(request.params.seed, number) if seed is None else seed
                like_first = with_turn_of(request, alike(draft, request))
                made = await self.submit_derived(
                    like_first, job_id=derived_id(request.id, number), seed=own, principal=principal
                )
                others.append(made.request)
        except BaseException as error:  # also the deadline of this call
            if key is None or not (isinstance(error, Unavailable) or admission.joined):
                self._take_back([request, *others], key)
            raise
        return replace(admission, others=tuple(others))

    def check_together(self, drafts: Sequence[Request], seed: int | None = None) -> None:
        """Raise InvalidRequest if drafts that belong together exceed a bound."""
        check_together([Identity("", 0.0, seed or 0).complete(draft, None) for draft in drafts], self._limits)

    def _take_back(self, requests: Sequence[Request], key: IdempotencyKey | None) -> None:
        """Cancel requests that are useless without the rest, and release their key."""
        for each in requests:
            self._control.abandon(each.id)
        if key is not None:
            first = requests[0]
            held = Identity(first.id, first.created_at, first.params.seed, key.fingerprint)
            self._control.background.start(self._keys.release(key, held))

    async def _submit_once(
        self,
        complete: Callable[[Identity], Request],
        key: IdempotencyKey,
        mine: Identity,
        queue: Callable[[Request], Awaitable[None]],
        *,
        resuming: bool,
    ) -> Admission:
        """Queue a new request of the key, join a queued one, or finish an admission that was interrupted."""
        held, record = mine, None
        for pause in KEY_RETRY_DELAYS_S:
            held = await self._keys.take(key, mine)
            if held == mine:
                break
            record = await self._token_log.record(held.id)
            if record is not None and await self._was_queued(record):
                return Admission(as_recorded(complete(held), record), joined=True)
            if record is None and mine.created_at - held.created_at > STALE_KEY_AGE_S:
                await self._keys.release(key, held)
            else:
                await asyncio.sleep(pause)
        try:
            if resuming and held == mine:
                raise NotFound(f"no answer to resume: none exists for this {HEADER}, or it has expired")
            request = await self._fit(as_recorded(complete(held), record))
            await queue(request)
        except Unavailable:
            raise  # it may have been queued: sending the key again joins it or finishes its admission
        except HeadraceError:
            if held == mine:
                await self._token_log.forget(held.id)  # before the key can be used again
            await self._keys.release(key, held)
            raise
        return Admission(request, joined=held != mine)

    async def submit_derived(
        self, draft: Request, *, job_id: str, seed: int, principal: Principal, notify: str = ""
    ) -> Admission:
        """Queue `draft` under an id and a seed that the caller derived; publish its end on the channel `notify`.

        A second call with the same id joins the first request, or finishes its admission. A request that was not
        charged with the one it derives from is charged to the caller's budget alone.

        Raises:
            InvalidRequest, ModelNotFound: the request cannot be served.
            QuotaExceeded, ExceedsRateLimit: the budget is used up.
            QueueFull, TenantQueueFull, Unavailable: try again later; with `retry_after`.
        """
        check_request(Identity(job_id, 0.0, seed).complete(draft, None), self._limits)
        with self._redis_deadline():
            request = await self._fit(Identity(job_id, await self._token_log.now(), seed).complete(draft, None))
            watcher = "" if self._limiter is None else self._limiter.channel
            if not await self._token_log.create(request, notify=notify, watcher=watcher):
                record = await self._adopt(request, notify)
                request = as_recorded(request, record)
                if record is not None and await self._was_queued(record):
                    self._keys.count_joined(joined=True)
                    return Admission(msgspec.structs.replace(request, created_at=record.created_at), joined=True)
                request = await self._fit(request)
            try:
                if self._limiter is not None:
                    await self._limiter.admit_derived(request, principal)
                await self._publisher.publish(request, principal)
            except Unavailable:
                raise  # it may have been queued: sending the id again joins it or finishes its admission
            except HeadraceError:
                await self._token_log.forget(job_id)  # before the id can be used again
                await self._release([request])
                raise
            return Admission(request)

    async def _adopt(self, request: Request, notify: str) -> RequestRecord | None:
        """Return the record of an existing request, and have its end published on `notify` if that is set."""
        if not notify:
            return await self._token_log.record(request.id)
        [record] = await self._token_log.adopt([Adoption(request, "", create=False)], notify)
        return record

    async def find_by_key(self, key: IdempotencyKey, tenant: str | None) -> RequestRecord | None:
        """Return the record of the key's request if `tenant` owns it; with None, any tenant's.

        Raises IdempotencyKeyReused, Unavailable.
        """
        with self._redis_deadline():
            held = await self._keys.find(key)
            record = await self._token_log.record(held.id) if held is not None else None
        return record if record is not None and tenant in (None, record.tenant) else None

    async def any_model(self) -> str | None:
        """Return the model that every name in a request stands for; None if each stands for itself."""
        if not self._catalog.any_name:
            return None
        with self._redis_deadline():
            return await self._catalog.any_model()

    async def fingerprint(self, request: Request | RequestRecord) -> str | None:
        """Return the fingerprint of what computes a request; None while no worker has announced one."""
        return adapted_fingerprint(await self._catalog.fingerprint(request.model), request.adapter)

    async def _fit(self, request: Request) -> Request:
        """Run the checks that depend on the models being served; see `fit_to_model`."""
        return fit_to_model(request, await self._catalog.find(request.model), self._limits)

    async def _queue(
        self,
        request: Request,
        *,
        principal: Principal,
        hook: Hook | None,
        keepsake: Keepsake | None,
        others: Sequence[Request],
    ) -> None:
        """Create the log, then queue the request: workers drop a queued request without a log.

        Both the log and the charge are awaited at once. If the charge is refused, the caller deletes the log.
        """
        together = [request]
        if others:
            model = await self._catalog.find(request.model)
            for number, draft in enumerate(others, 1):
                fitted = lower_max_tokens(placed(draft, request.model, ""), model)
                together.append(msgspec.structs.replace(fitted, id=derived_id(request.id, number)))
        create = partial(self._token_log.create, request, keepsake=keepsake, notify=WEBHOOK_CHANNEL if hook else "")
        if self._limiter is not None and (charges := self._limiter.charges(together, principal)):
            await run_alongside(create(watcher=self._limiter.channel), self._limiter.charge(charges, principal))
        else:
            await create()
        try:
            if hook is not None:
                webhook = Webhook(id=request.id, hook=hook, created_at=request.created_at)
                await self._webhooks.add(webhook, FIRST_CHECK_DELAY_S)
            await self._publisher.publish(request, principal)
        except Unavailable:
            raise  # it may have been queued; if not, the usage settler finds its charge in the ledger
        except HeadraceError:
            self._control.background.start(self._release(together))
            raise

    async def _release(self, requests: Sequence[Request]) -> None:
        if self._limiter is not None:
            await self._limiter.release([request.id for request in requests])

    async def _was_queued(self, record: RequestRecord) -> bool:
        """Return True if the request reached the queue."""
        return record.state is not RequestState.QUEUED or await self._transport.outlook(record.ticket) is not None
