"""Writes of the HTTP connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from producer_api.http.protocol import LingeringCycle


class Wire:
    """Transport that keeps what each write has."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.write(b"closed")


@pytest.mark.parametrize(
    ("method", "headers", "bodies", "expected"),
    [
        pytest.param("GET", [(b"content-length", b"3")], [b"abc"], [b"head\r\nabc"], id="a body in one piece"),
        pytest.param("GET", [(b"content-length", b"3")], [b"ab", b"c"], [b"head\r\nab", b"c"], id="in two pieces"),
        pytest.param("GET", [(b"content-length", b"0")], [b""], [b"head\r\n"], id="an empty one"),
        pytest.param("HEAD", [(b"content-length", b"3")], [b""], [b"head\r\n"], id="no body"),
        pytest.param("GET", [], [b"a"], [b"head\r\n", b"1\r\na\r\n0\r\n\r\n"], id="a stream"),
        pytest.param(
            "GET", [(b"content-length", b"3")], [], [b"head\r\n", b"closed"], id="a fault before the body"
        ),
    ],
)
async def test_head_and_body_of_known_length_are_one_write(
    method: str, headers: list[tuple[bytes, bytes]], bodies: list[bytes], expected: list[bytes]
) -> None:
    wire: Any = Wire()
    log = logging.getLogger(__name__)
    cycle = LingeringCycle(
        scope={"type": "http", "method": method},  # type: ignore[typeddict-item]
        transport=wire,
        flow=FlowControl(wire),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, body in enumerate(bodies, 1):
            await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

    await cycle.run_asgi(app)
    assert [_without_head(write) for write in wire.writes] == expected


def _without_head(write: bytes) -> bytes:
    """Return a write with `head` in place of a response's status line and headers."""
    return b"head\r\n" + write.partition(b"\r\n\r\n")[2] if write.startswith(b"HTTP/1.1") else write
