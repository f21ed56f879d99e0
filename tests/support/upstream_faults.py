"""Requests that a fake upstream server answers badly, and the settings of the runtime that sends them."""

from __future__ import annotations

from typing import Any

from shared.settings import load
from tests.support.fake_upstream import (
    HEAD,
    MODEL,
    Exchange,
    FakeUpstream,
)

KEY = "sk-worker-secret"
BAD = "answer this badly"


def settings_for(server: FakeUpstream, **given: Any) -> Any:
    fields = {"runtime": "upstream", "upstream_url": server.url, "upstream_model": MODEL, "upstream_api_key": KEY}
    return load({**fields, **given}).settings


def badly(server: FakeUpstream, respond: Any) -> None:
    """Let the requests for BAD be answered by `respond`, and others by the rule."""

    async def choose(exchange: Exchange) -> None:
        await (respond if BAD in str(exchange.body) else server.follow_rule)(exchange)

    server.respond = choose


def endless(part: bytes, first: bytes = b"") -> Any:
    """Return a handler that sends the same part of a stream until the client goes."""

    async def respond(exchange: Exchange) -> None:
        await exchange.send(HEAD)
        if first:
            await exchange.send_part(first)
        while not exchange.gone.is_set():
            await exchange.send_part(part)

    return respond


def attempts(server: FakeUpstream) -> int:
    return sum(BAD in str(exchange.body) for exchange in server.exchanges)
