"""Internals of uvicorn that Headrace uses; a release that changes them fails here first."""

from __future__ import annotations

import asyncio
import signal

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from producer_api.http.protocol import Connection
from producer_api.http.uvicorn_internals import forget_signals


async def app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("no request is sent")


def test_a_forgotten_signal_is_not_raised_again() -> None:
    """uvicorn raises the signals that it caught once more when its context ends."""
    server = uvicorn.Server(uvicorn.Config(app))
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with server.capture_signals():
            signal.raise_signal(signal.SIGTERM)
        assert (server.should_exit, heard) == (True, [signal.SIGTERM])
        with server.capture_signals():
            signal.raise_signal(signal.SIGTERM)
            forget_signals(server)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_the_http_protocol_has_the_attributes_in_use() -> None:
    config = uvicorn.Config(app, http=HttpToolsProtocol)
    config.load()
    protocol = HttpToolsProtocol(config, uvicorn.server.ServerState(), {}, asyncio.get_running_loop())
    for name in ("connections", "cycle", "flow", "headers", "logger", "loop", "transport"):
        assert hasattr(protocol, name), name
    overridden = [name for name in vars(Connection) if name.startswith("on_") or name == "send_400_response"]
    assert overridden
    for name in overridden:
        assert callable(getattr(HttpToolsProtocol, name)), name
    assert STATUS_LINE[400].startswith(b"HTTP/1.1 400 ")
