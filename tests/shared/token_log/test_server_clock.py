"""The server's clock, extrapolated between readings."""

from __future__ import annotations

import pytest

from shared.token_log.server_clock import MAX_AGE_S, ServerClock


async def test_the_clock_is_read_rarely_and_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, server, asked = 10.0, 5000.0, 0
    monkeypatch.setattr("shared.token_log.server_clock.time.monotonic", lambda: ours)

    async def ask() -> float:
        nonlocal asked
        asked += 1
        return server

    clock = ServerClock(ask)
    assert await clock.now() == 5000.0
    ours += MAX_AGE_S / 2
    assert (await clock.now(), asked) == (5000.0 + MAX_AGE_S / 2, 1)
    ours, server = ours + MAX_AGE_S, 6000.0  # the server changed, or its clock was set
    assert (await clock.now(), asked) == (6000.0, 2)
