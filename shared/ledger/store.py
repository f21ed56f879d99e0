"""The ledger on Redis: each request that was charged, until its end is written down. Each change is one Lua call.

A request's entry is made by the call that charges its limits, before it is queued, and goes only once its usage is
in the database: whoever dies in between, another process finds it due. All of it shares one slot, so that a request
is charged to all of its limits or to none.

The library `limits` counts one limit a call, so that a refusal by one leaves the others charged; it has no token
bucket, cannot give tokens back, and keeps a moving window's tokens one by one. So the counting is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from shared.ledger.types import Charge, Due, End, Entry, Limit, Standing
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.foreign import UNREADABLE
from shared.redis.script import LEASE, Script
from shared.settings import Settings

STRATEGIES = Path(__file__).with_name("strategies.lua")  # tests replace its clock
CHARGES = Path(__file__).with_name("ledger.lua")
WRITE_LEASE = 30.0  # seconds after which an end that is not written is another's to write

_encode = msgspec.json.Encoder().encode
_entry = msgspec.json.Decoder(Entry).decode
_end = msgspec.json.Decoder(End).decode


class Refused(Exception):
    """There is no room in some of a request's limits: `standings` of all of those. Nothing was charged.

    `first` are those of the first request that was to be charged.
    """

    def __init__(self, standings: Sequence[Standing], first: Sequence[Standing]) -> None:
        super().__init__()
        self.standings, self.first = standings, first


class Behind(Exception):
    """Too many ends wait to be written."""


class Ledger:
    """Charges, and what follows. Every call raises Unavailable when the store cannot be reached in time.

    Args:
        most_unwritten: bound on ends that wait to be written.
    """

    def __init__(self, server: RedisServer, *, most_unwritten: int) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, "ledger", LEASE, STRATEGIES, CHARGES)
        self._most_unwritten = most_unwritten

    @classmethod
    def of(cls, settings: Settings, server: RedisServer) -> Self:
        return cls(server, most_unwritten=settings.usage_backlog)

    async def charge(self, *charges: Charge) -> list[Standing]:
        """Charge all of them, to all of their limits, or none; what is charged already is not charged again.

        Returns where the first's limits are then; nothing where all was charged already. Raises Refused, Behind.
        """
        asked = [part for each in charges for part in (each.job_id, _encode(each.entry), _encode(each.limits))]
        status, *told = await self._run("charge", self._most_unwritten, *asked)
        if status == b"behind":
            raise Behind
        if status == b"known":
            return []
        number, *told = told
        limits = charges[number].limits
        standings, rest = _standings(limits, told[: 3 * len(limits)]), told[3 * len(limits) :]
        if status == b"refused":
            raise Refused(standings, _standings(charges[0].limits, rest))
        return standings

    async def look(self, limits: Sequence[Limit]) -> list[Standing]:
        """Where limits stand."""
        return _standings(limits, await self._run("look", _encode(limits)))

    async def settle(self, ends: Sequence[tuple[str, int | None, End | None]]) -> list[Entry | None]:
        """Charge what requests took, free what they held, and keep their ends until they are written.

        Args:
            ends: id, tokens, and the end that is to be written. Without tokens it never began: all is given back.

        Returns each one's entry, to the first who settles it; None to whoever comes later.
        """
        lease = int(WRITE_LEASE * 1000)
        calls = [
            (job_id, "" if tokens is None else tokens, "" if end is None else _encode(end), lease)
            for job_id, tokens, end in ends
        ]
        replies = await self._many("settle", calls)
        entries: list[Entry | None] = []
        for (job_id, *_), reply in zip(ends, replies, strict=True):
            decode = partial(_entry, reply)
            entries.append(None if reply is None else self._foreign.read("ledger", job_id, decode))
        return entries

    async def claim(self, most: int) -> list[Due]:
        """What is due, given to nobody else for a while."""
        found = await self._run("claim", most, int(WRITE_LEASE * 1000))
        due = []
        for job_id, age, entry, end in found:
            try:
                due.append(Due(job_id.decode(), age / 1000, _entry(entry), _end(end) if end else None))
            except UNREADABLE:
                await self._run("refuse", job_id)
        return due

    async def written(self, job_ids: Sequence[str]) -> None:
        """Their ends are in the database."""
        await self._run("written", *job_ids)

    async def _run(self, command: str, *args: Any) -> Any:
        [reply] = await self._many(command, [args])
        return reply

    async def _many(self, command: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._server.reaching("the ledger"):
            return await self._script.many(command, [(keys.LEDGER, (keys.LIMIT_PREFIX, *args)) for args in calls])


def _standings(limits: Sequence[Limit], told: Sequence[int]) -> list[Standing]:
    """Of room, reset and wait of each; times in ms."""
    parts = iter(told)
    return [
        Standing(limit, max(0, room), reset / 1000, wait / 1000)
        for limit, room, reset, wait in zip(limits, parts, parts, parts, strict=True)
    ]
