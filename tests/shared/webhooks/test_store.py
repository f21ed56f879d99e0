"""The webhook store, on a server and in memory."""

from __future__ import annotations

import asyncio

import msgspec

from shared.backend import Backend
from shared.webhooks.interface import Claim, Hook, Webhook, WebhookState
from tests.support.waiting import LIMIT_S


def make(name: str) -> Webhook:
    return Webhook(id=name, hook=Hook("https://example.com"), created_at=1.0)


async def due(backend: Backend, lease: float = 60.0) -> Claim:
    async with asyncio.timeout(LIMIT_S):
        while not (found := await backend.webhooks.claim(1, lease)):
            await asyncio.sleep(0.01)
    return found[0]


async def test_one_is_claimed_once_when_it_is_due(backend: Backend) -> None:
    store = backend.webhooks
    await store.add(make("later"), 60)
    await store.add(make("now"), 0)
    await store.add(make("now"), 60)  # it is there already
    claim = await due(backend)
    assert claim.webhook == make("now")
    assert await store.claim(9, 60) == []
    await store.wake("later")
    assert (await due(backend)).webhook.id == "later"
    assert await store.get("now") == make("now")
    assert await store.get("never") is None
    await store.wake("never")
    assert await store.claim(9, 60) == []


async def test_a_lapsed_claim_is_anothers(backend: Backend) -> None:
    """Writes of a holder whose lease expired are refused; those of the next are accepted."""
    store = backend.webhooks
    await store.add(make("a"), 0)
    late = await due(backend, 0.0)
    holder = await due(backend)
    told = msgspec.structs.replace(make("a"), state=WebhookState.DELIVERED)
    assert not await store.update(late, told, None)
    await store.drop(late)
    assert await store.update(holder, told, None)
    assert await store.get("a") == told
    assert await store.claim(9, 60) == []
    await store.wake("a")
    assert await store.claim(9, 60) == [], "what is done stays done"


async def test_woken_while_claimed(backend: Backend) -> None:
    """A webhook that is woken while it is claimed becomes due as soon as it is updated."""
    store = backend.webhooks
    await store.add(make("a"), 0)
    claim = await due(backend)
    await store.wake("a")
    assert await store.claim(9, 60) == []
    assert await store.update(claim, make("a"), 60)
    again = await due(backend)
    assert await store.update(again, make("a"), 0)
    await store.drop(await due(backend))
    assert await store.get("a") is None
