"""The ledger on Redis: each request that was charged, until its end is written down. Each change is one Lua call.

A request's entry is made by the call that charges its limits, before it is queued, and goes only once its usage is
in the database: whoever dies in between, another process finds it due. All of it shares one slot, so that a request
is charged to all of its limits or to none.

The library `limits` counts one limit a call, so that a refusal by one leaves the others charged; it has no token
bucket, cannot give tokens back, and keeps a moving window's tokens one by one. So the counting is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared import keys
from shared.ledger.base import Due, Entry, Limit, Row, Standing
from shared.redis_client import RedisServer, Script

WRITE_LEASE = 30.0  # seconds after which a row that is not written is another's to write

_encode = msgspec.json.Encoder().encode
_entry = msgspec.json.Decoder(Entry).decode
_row = msgspec.json.Decoder(Row).decode


class Refused(Exception):
    """There is no room in some of the limits: `standings` of all; nothing was charged."""

    def __init__(self, standings: Sequence[Standing]) -> None:
        super().__init__()
        self.standings = standings


class Behind(Exception):
    """Too many rows wait to be written."""


class Ledger:
    """Charges, and what follows. Every call raises Unavailable when the store cannot be reached in time.

    Args:
        most_rows: bound on rows that wait to be written.
    """

    def __init__(self, server: RedisServer, *, most_rows: int) -> None:
        self._server = server
        self._script = Script(server.client, Path(__file__).with_name("ledger.lua"))
        self._most_rows = most_rows

    async def charge(self, request_id: str, entry: Entry, limits: Sequence[Limit]) -> list[Standing]:
        """Charge all of `limits` or none; a request that is charged already is not charged again, and has none.

        Raises Refused, Behind.
        """
        status, *told = await self._run("charge", request_id, _encode(entry), _encode(limits), self._most_rows)
        if status == b"behind":
            raise Behind
        standings = _standings(limits, told)
        if status == b"refused":
            raise Refused(standings)
        return standings

    async def look(self, limits: Sequence[Limit]) -> list[Standing]:
        """Where limits stand."""
        return _standings(limits, await self._run("look", _encode(limits)))

    async def settle(self, ends: Sequence[tuple[str, int | None, Row | None]]) -> list[Entry | None]:
        """Charge what requests took, free what they held, and keep their rows until they are written.

        Args:
            ends: id, tokens, row. Without tokens the request never began: all is given back.

        Returns each one's entry, to the first who settles it; None to whoever comes later.
        """
        lease = int(WRITE_LEASE * 1000)
        calls = [
            (request_id, "" if tokens is None else tokens, "" if row is None else _encode(row), lease)
            for request_id, tokens, row in ends
        ]
        replies = await self._many("settle", calls)
        return [None if reply is None else _entry(reply) for reply in replies]

    async def claim(self, most: int) -> list[Due]:
        """What is due, given to nobody else for a while."""
        found = await self._run("claim", most, int(WRITE_LEASE * 1000))
        return [
            Due(
                request_id.decode(),
                age / 1000,
                _entry(entry) if entry else None,
                _row(row) if row else None,
            )
            for request_id, age, entry, row in found
        ]

    async def written(self, request_ids: Sequence[str]) -> None:
        """Their rows are in the database."""
        await self._run("written", *request_ids)

    async def _run(self, command: str, *args: Any) -> Any:
        [reply] = await self._many(command, [args])
        return reply

    async def _many(self, command: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._server.reaching("the ledger"):
            return await self._script.many(command, [(keys.LEDGER, (keys.LIMIT_PREFIX, *args)) for args in calls])


def _standings(limits: Sequence[Limit], told: Sequence[int]) -> list[Standing]:
    """Of room, reset and wait of each; times in ms. One that was charged before has none."""
    if not told:
        return []
    parts = iter(told)
    return [
        Standing(limit, max(0, room), reset / 1000, wait / 1000)
        for limit, room, reset, wait in zip(limits, parts, parts, parts, strict=True)
    ]
