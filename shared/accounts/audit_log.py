"""Audit log of administrative actions: who changed what, when and with which outcome."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import Script

MAX_ACTIONS = 10_000
MAX_TARGET_CHARS = 512
PAGE = 200  # actions that are read together


class Action(msgspec.Struct, frozen=True):
    """An administrative action. It never holds a body: neither keys nor prompts.

    Attributes:
        key_id: of the API key or token; empty while authentication is off.
        action: method and template of the route.
        target: what the parameters of the path name.
        status: the HTTP status of the outcome.
        code: of the error, empty for a success.
    """

    key_id: str
    tenant: str
    address: str
    action: str
    target: str
    status: int
    code: str = ""


class Entry(Action, frozen=True, kw_only=True):
    """An action with its id, which orders all entries, and its time by the server's clock, in seconds."""

    id: str
    at: float

    @classmethod
    def from_action(cls, entry_id: str, action: Action) -> Entry:
        milliseconds, _ = _order(entry_id)
        return cls(id=entry_id, at=milliseconds / 1000, **msgspec.structs.asdict(action))


class AuditLog(Protocol):
    """The last MAX_ACTIONS actions. Every call may raise Unavailable."""

    async def add(self, action: Action) -> None: ...

    async def list(self, most: int, *, before: tuple[int, int] | None = None) -> Sequence[Entry]:
        """Return actions, newest first; with `before`, only those older than the one with this id."""


_decode = msgspec.json.Decoder(Action).decode


class RedisAuditLog:
    """AuditLog on a Redis stream."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._script = Script(server, "audit", Path(__file__).with_suffix(".lua"))

    async def add(self, action: Action) -> None:
        async with self._server.reaching("the audit log"):
            await self._script("add", [keys.AUDIT], msgspec.json.encode(action), MAX_ACTIONS)

    async def list(self, most: int, *, before: tuple[int, int] | None = None) -> Sequence[Entry]:
        entries: list[Entry] = []
        while len(entries) < most:  # entries of another program are passed over
            end = "+" if before is None else f"({before[0]}-{before[1]}"
            async with self._server.reaching("the audit log"):
                found: list[bytes] = await self._script("list", [keys.AUDIT], end, PAGE)
            for entry_id, text in zip(found[::2], found[1::2], strict=True):
                before = _order(entry_id.decode())
                action = self._server.foreign.read("audit", entry_id, partial(_decode, text))
                if action is not None:
                    entries.append(Entry.from_action(entry_id.decode(), action))
            if len(found) < 2 * PAGE:
                break
        return entries[:most]


class MemoryAuditLog:
    """AuditLog in memory."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=MAX_ACTIONS)
        self._added = 0

    async def add(self, action: Action) -> None:
        self._added += 1
        self._entries.append(Entry.from_action(f"{int(time.time() * 1000)}-{self._added}", action))

    async def list(self, most: int, *, before: tuple[int, int] | None = None) -> Sequence[Entry]:
        older = (e for e in reversed(self._entries) if before is None or _order(e.id) < before)
        return list(islice(older, most))


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)
