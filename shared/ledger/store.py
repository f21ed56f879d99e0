"""The ledger on Redis: charged requests, until their ends are recorded. Each change is one Lua call.

The call that charges a request's limits also creates its entry, before it is queued. The entry is deleted once the
usage is in the database: if a process dies in between, another finds the entry due. All keys share one slot, so
that a request is charged to all of its limits or to none.

The library `limits` is not used. It counts one limit per call, so that a refusal by one leaves the others charged;
it has no token bucket, cannot refund tokens, and stores each token of a moving window.
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
from shared.redis.script import LEASE_DEADLINE, Script
from shared.settings import Settings

STRATEGIES = Path(__file__).with_name("strategies.lua")  # tests replace its clock
CHARGES = Path(__file__).with_name("ledger.lua")
RECORD_LEASE_S = 30.0  # after which another process may record an end

_encode = msgspec.json.Encoder().encode
_entry = msgspec.json.Decoder(Entry).decode
_open = msgspec.json.Decoder(tuple[float, str, str]).decode  # when it was charged, its entry, its limits
_end = msgspec.json.Decoder(End).decode


class Refused(Exception):
    """A limit of a request has no room, so nothing was charged. `standings` are those of its limits.

    `first` are the standings of the first request that was to be charged.
    """

    def __init__(self, standings: Sequence[Standing], first: Sequence[Standing]) -> None:
        super().__init__()
        self.standings, self.first = standings, first


class Behind(Exception):
    """Too many ends wait to be recorded."""


class Ledger:
    """Charges, and their settlement. Every call raises Unavailable if the store cannot be reached in time.

    Args:
        most_unwritten: maximum ends that wait to be recorded.
    """

    def __init__(self, server: RedisServer, *, most_unwritten: int) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, "ledger", LEASE_DEADLINE, STRATEGIES, CHARGES)
        self._most_unwritten = most_unwritten

    @classmethod
    def from_settings(cls, settings: Settings, server: RedisServer) -> Self:
        return cls(server, most_unwritten=settings.usage_backlog)

    async def charge(self, *charges: Charge) -> list[Standing]:
        """Charge all requests to all of their limits, or none; a charged request is not charged again.

        Returns the standings of the first charged one's limits; none if all were charged before. Raises Refused,
        Behind.
        """
        args = [part for each in charges for part in (each.job_id, _encode(each.entry), _encode(each.limits))]
        status, *reply = await self._run("charge", self._most_unwritten, *args)
        if status == b"behind":
            raise Behind
        if status == b"known":
            return []
        number, *numbers = reply
        limits = charges[number].limits
        standings, rest = _standings(limits, numbers[: 3 * len(limits)]), numbers[3 * len(limits) :]
        if status == b"refused":
            raise Refused(standings, _standings(charges[0].limits, rest))
        return standings

    async def look(self, limits: Sequence[Limit]) -> list[Standing]:
        """Return the standings of limits without charging."""
        return _standings(limits, await self._run("look", _encode(limits)))

    async def settle(self, ends: Sequence[tuple[str, int | None, End | None]]) -> list[Entry | None]:
        """Correct charges to what requests used, free their slots, and keep their ends until they are recorded.

        Args:
            ends: id, tokens, and the end to record. Without tokens the request never began: it is refunded.

        Returns the entry of each to the first caller that settles it; None to later ones.
        """
        lease = int(RECORD_LEASE_S * 1000)
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
        """Claim due requests for RECORD_LEASE_S."""
        found = await self._run("claim", most, int(RECORD_LEASE_S * 1000))
        due = []
        for job_id, age, stored, *ended in found:
            try:
                entry, end = (stored, _end(*ended)) if ended else (_open(stored)[1], None)
                due.append(Due(job_id.decode(), age / 1000, _entry(entry), end))
            except UNREADABLE:
                await self._run("refuse", job_id)
        return due

    async def written(self, job_ids: Sequence[str]) -> None:
        """Delete the ends that are in the database."""
        await self._run("written", *job_ids)

    async def _run(self, command: str, *args: Any) -> Any:
        [reply] = await self._many(command, [args])
        return reply

    async def _many(self, command: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._server.reaching("the ledger"):
            return await self._script.many(command, [(keys.LEDGER, (keys.LIMIT_PREFIX, *args)) for args in calls])


def _standings(limits: Sequence[Limit], numbers: Sequence[int]) -> list[Standing]:
    """Decode room, reset and wait of each limit; times in ms."""
    parts = iter(numbers)
    return [
        Standing(limit, max(0, room), reset / 1000, wait / 1000)
        for limit, room, reset, wait in zip(limits, parts, parts, parts, strict=True)
    ]
