"""Admission: the one way in for every API. Checks a request, names it, queues it.

It does not know which API asked, or how an answer is worded.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from producer_api.admission.deadline import beside, patience
from producer_api.admission.idempotency import IdempotencyKeys, Identity, Key, derived_id, derived_seed
from producer_api.admission.model_catalog import Catalog
from producer_api.admission.request_control import Admitted
from producer_api.auth.principal import Principal
from producer_api.metering.rate_limiter import Meter
from shared.backend import Backend
from shared.errors import HeadraceError, NotFound, Unavailable
from shared.protocol import Request, RequestState
from shared.redis.keys import notify_channel
from shared.settings import Settings
from shared.token_log.interface import Adoption, Keepsake, RequestRecord
from shared.validation.request_limits import Limits, check_request, check_served, check_together
from shared.webhooks.interface import Hook, Webhook

EXPIRED = 60.0  # seconds after which a key without a request has outlived it
WEBHOOKS = notify_channel("webhooks")  # tells of ends that somebody is to be told of
LOOK = 1.0  # seconds until a webhook is first looked at, unless its request ends sooner
SETTLING = (0.01, 0.02, 0.05, 0.1, 0.2, 0.2)  # seconds to wait for one who took a key to queue its request


@dataclass(frozen=True)
class Admission:
    """A queued request, and those queued with it. `joined`: it came before, under the same key or derived id."""

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
        backend: the queue, the answers, and whom to tell of their end.
        keys: the idempotency keys.
        catalog: the models that may be named.
        meter: charges what is admitted; None where nothing is limited or metered.
        admitted: ends what is of no use after all, in the background.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        *,
        keys: IdempotencyKeys,
        catalog: Catalog,
        meter: Meter | None,
        admitted: Admitted,
    ) -> None:
        self._limits = Limits.from_settings(settings)
        self._transport = backend.transport
        self._token_log = backend.token_log
        self._keys = keys
        self._catalog = catalog
        self._meter = meter
        self._webhooks = backend.webhooks
        self._admitted = admitted
        self._upkeep = admitted.upkeep

    async def submit(
        self,
        draft: Request,
        *,
        principal: Principal,
        seed: int | None,
        within: float | None = None,
        key: Key | None = None,
        resuming: bool = False,
        hook: Hook | None = None,
        keepsake: Keepsake | None = None,
        others: Sequence[Request] = (),
    ) -> Admission:
        """Queue `draft` under an id, a time and a seed of our own, and return it as queued.

        Args:
            draft: what the client asked for; its id, created_at and seed are not looked at.
            principal: who asks.
            seed: the client's, or None.
            within: seconds that it may take, in place of the draft's deadline.
            key: under which it is queued once.
            resuming: only to join what came before under the key.
            hook: whom to tell of its end.
            keepsake: what to keep with it.
            others: drafts that are to be derived from it: they are charged with it.

        Raises:
            PermissionDenied: it may not use the model or the class.
            InvalidRequest, ModelNotFound, ContextLengthExceeded: the request cannot be served.
            IdempotencyKeyReused: the key stands for another request.
            NotFound: there is nothing to resume any more.
            RateLimited, QuotaExceeded: a limit of the caller's is reached.
            QueueFull, TenantQueueFull, Unavailable: not now; with `retry_after`.
        """
        principal.check_model(draft.model)
        principal.check_class(draft.priority)
        drawn = secrets.randbits(63) if seed is None else seed
        check_request(Identity.new(0.0, drawn, key).complete(draft, None), self._limits)
        queue = partial(self._queue, principal=principal, hook=hook, keepsake=keepsake, others=others)
        async with patience():
            identity = Identity.new(await self._token_log.now(), drawn, key)
            if key is not None:
                return await self._submit_once(draft, within, key, identity, queue, resuming=resuming)
            request = identity.complete(draft, within)
            await self._check(request)
            try:
                await queue(request)
            except BaseException:  # also our own time limit
                self._upkeep.begin(self._token_log.forget(request.id))
                raise
            return Admission(request)

    async def submit_all(
        self,
        drafts: Sequence[Request],
        *,
        principal: Principal,
        seed: int | None,
        within: float | None = None,
        key: Key | None = None,
        resuming: bool = False,
    ) -> Admission:
        """As `submit`, for drafts that are asked together: all are queued, or those that were are cancelled again.

        Without a `seed` each has one of its own.
        """
        self.check_together(drafts, seed)
        first, *rest = drafts
        admission = await self.submit(
            first, principal=principal, seed=seed, within=within, key=key, resuming=resuming, others=rest
        )
        request = admission.request
        others: list[Request] = []
        try:
            for number, draft in enumerate(rest, 1):
                own = derived_seed(request.params.seed, number) if seed is None else seed
                made = await self.submit_derived(
                    msgspec.structs.replace(draft, deadline=request.deadline),
                    job_id=derived_id(request.id, number),
                    seed=own,
                    principal=principal,
                )
                others.append(made.request)
        except BaseException as error:  # also our own time limit
            if key is None or not (isinstance(error, Unavailable) or admission.joined):
                self._take_back([request, *others], key)
            raise
        return replace(admission, others=tuple(others))

    def check_together(self, drafts: Sequence[Request], seed: int | None = None) -> None:
        """Raise InvalidRequest for what is out of bounds in drafts that are asked together."""
        check_together([Identity("", 0.0, seed or 0).complete(draft, None) for draft in drafts], self._limits)

    def _take_back(self, requests: Sequence[Request], key: Key | None) -> None:
        """Cancel what is of no use without the rest, and free its key."""
        for each in requests:
            self._admitted.abandon(each.id)
        if key is not None:
            first = requests[0]
            held = Identity(first.id, first.created_at, first.params.seed, key.fingerprint)
            self._upkeep.begin(self._keys.release(key, held))

    async def _submit_once(
        self,
        draft: Request,
        within: float | None,
        key: Key,
        mine: Identity,
        queue: Callable[[Request], Awaitable[None]],
        *,
        resuming: bool,
    ) -> Admission:
        """Under a key: queue what is new, join what is queued, and finish what was left on the way to the queue."""
        held = mine
        for pause in SETTLING:
            held = await self._keys.take(key, mine)
            if held == mine:
                break
            record = await self._token_log.record(held.id)
            if record is not None and await self._queued(record):
                return Admission(held.complete(draft, within), joined=True)
            if record is None and mine.created_at - held.created_at > EXPIRED:
                await self._keys.release(key, held)
            else:
                await asyncio.sleep(pause)
        request = held.complete(draft, within)
        try:
            if resuming and held == mine:
                raise NotFound("there is no answer of this key to go on with, or it has expired")
            await self._check(request)
            await queue(request)
        except Unavailable:
            raise  # it may have been queued: whoever sends the key again finds out, or finishes it
        except HeadraceError:
            if held == mine:
                await self._token_log.forget(request.id)  # before the key may come again
            await self._keys.release(key, held)
            raise
        return Admission(request, joined=held != mine)

    async def submit_derived(
        self, draft: Request, *, job_id: str, seed: int, principal: Principal, notify: str = ""
    ) -> Admission:
        """Queue `draft` under an id and a seed that its caller derived; its end is told on the channel `notify`.

        The same id again is the same request: queued where it was left on the way there, and otherwise joined. What
        was not charged with the request that it is derived from is charged to its caller's budget alone.

        Raises:
            InvalidRequest, ModelNotFound, ContextLengthExceeded: the request cannot be served.
            QuotaExceeded, ExceedsRateLimit: the budget is used up.
            QueueFull, TenantQueueFull, Unavailable: not now; with `retry_after`.
        """
        check_request(Identity(job_id, 0.0, seed).complete(draft, None), self._limits)
        async with patience():
            request = Identity(job_id, await self._token_log.now(), seed).complete(draft, None)
            await self._check(request)
            watcher = "" if self._meter is None else self._meter.channel
            if not await self._token_log.create(request, notify=notify, watcher=watcher):
                record = await self._adopted(request, notify)
                if record is not None and await self._queued(record):
                    return Admission(msgspec.structs.replace(request, created_at=record.created_at), joined=True)
            try:
                if self._meter is not None:
                    await self._meter.admit_derived(request, principal)
                await self._transport.publish(request)
            except Unavailable:
                raise  # it may have been queued: whoever sends the id again finds out, or finishes it
            except HeadraceError:
                await self._token_log.forget(job_id)  # before the id may come again
                await self._release([request])
                raise
            return Admission(request)

    async def _adopted(self, request: Request, notify: str) -> RequestRecord | None:
        """The record of one that came before, whose end is now told on `notify`, if that is a channel."""
        if not notify:
            return await self._token_log.record(request.id)
        [record] = await self._token_log.adopt([Adoption(request, "", create=False)], notify)
        return record

    async def known(self, key: Key, tenant: str | None) -> RequestRecord | None:
        """What came before under a key, if it is still known, and `tenant`'s; None for anybody's.

        Raises IdempotencyKeyReused, Unavailable.
        """
        async with patience():
            held = await self._keys.find(key)
            record = await self._token_log.record(held.id) if held is not None else None
        return record if record is not None and tenant in (None, record.tenant) else None

    async def fingerprint(self, model: str) -> str | None:
        """What tells answers of one state of a model from those of another; None while nobody knows."""
        return await self._catalog.fingerprint(model)

    async def _check(self, request: Request) -> None:
        """What only the server's state can tell."""
        check_served(request, await self._catalog.find(request.model), self._limits)

    async def _queue(
        self,
        request: Request,
        *,
        principal: Principal,
        hook: Hook | None,
        keepsake: Keepsake | None,
        others: Sequence[Request],
    ) -> None:
        """The log comes before the queue: workers drop a queued request that has none. The webhook needs it too.

        It is made while the request is charged, in one wait; whoever is refused leaves it to be forgotten.
        """
        together = [
            request,
            *(msgspec.structs.replace(draft, id=derived_id(request.id, i)) for i, draft in enumerate(others, 1)),
        ]
        notify = WEBHOOKS if hook else ""
        create = partial(self._token_log.create, request, notify=notify, keepsake=keepsake)
        if self._meter is not None and (charges := self._meter.charges(together, principal)):
            await beside(create(watcher=self._meter.channel), self._meter.charge(charges, principal))
        else:
            await create()
        try:
            if hook is not None:
                await self._webhooks.add(Webhook(id=request.id, hook=hook, created_at=request.created_at), LOOK)
            await self._transport.publish(request)
        except Unavailable:
            raise  # it may have been queued; what was not is found in the ledger
        except HeadraceError:
            self._upkeep.begin(self._release(together))
            raise

    async def _release(self, requests: Sequence[Request]) -> None:
        if self._meter is not None:
            await self._meter.release([request.id for request in requests])

    async def _queued(self, record: RequestRecord) -> bool:
        """Whether it got as far as the queue."""
        return record.state is not RequestState.QUEUED or await self._transport.outlook(record.ticket) is not None
