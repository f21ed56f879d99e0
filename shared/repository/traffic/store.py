"""Store of the splits of traffic and of shadow copies, and of the pairs that these left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import Script
from shared.repository.traffic.pairs import Pair
from shared.repository.traffic.rules import Shadow, Split, Traffic

STRUCTURE = "traffic"
MAX_PAIRS = 1_000  # of one name
PAIRS_TTL_S = 7 * 86_400  # after the last one

T = TypeVar("T")


class TrafficStore(Protocol):
    """Splits, shadow copies and pairs. Every call may raise Unavailable."""

    async def traffic(self) -> Traffic:
        """Return all splits and shadow copies."""

    async def set_split(self, split: Split) -> None:
        """Store a split in place of that of the same name."""

    async def remove_split(self, name: str) -> bool:
        """Remove a split; return False if there is none."""

    async def set_shadow(self, shadow: Shadow) -> None:
        """Store shadow copies in place of those of the same name, and remove the pairs of those."""

    async def remove_shadow(self, name: str) -> bool:
        """Stop shadow copies, and keep their pairs; return False if there are none."""

    async def add_pair(self, name: str, pair: Pair) -> None:
        """Record a pair; the last MAX_PAIRS of a name are kept."""

    async def pairs(self, name: str) -> list[Pair]:
        """Return the recorded pairs of a name, newest first."""


_decode_split = msgspec.json.Decoder(Split).decode
_decode_shadow = msgspec.json.Decoder(Shadow).decode
_decode_pair = msgspec.json.Decoder(Pair).decode


class RedisTrafficStore:
    """TrafficStore on Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, STRUCTURE, Path(__file__).with_name("store.lua"))

    async def traffic(self) -> Traffic:
        splits, shadows = await self._run("traffic", [keys.SPLITS, keys.SHADOWS])
        return Traffic(
            {split.name: split for split in self._decoded(splits, _decode_split)},
            {shadow.name: shadow for shadow in self._decoded(shadows, _decode_shadow)},
        )

    async def set_split(self, split: Split) -> None:
        await self._run("set", [keys.SPLITS], split.name, msgspec.json.encode(split))

    async def remove_split(self, name: str) -> bool:
        return bool(await self._run("remove", [keys.SPLITS], name))

    async def set_shadow(self, shadow: Shadow) -> None:
        names = [keys.SHADOWS, keys.shadow_pairs(shadow.name)]
        await self._run("set", names, shadow.name, msgspec.json.encode(shadow))

    async def remove_shadow(self, name: str) -> bool:
        return bool(await self._run("remove", [keys.SHADOWS], name))

    async def add_pair(self, name: str, pair: Pair) -> None:
        await self._run("add", [keys.shadow_pairs(name)], msgspec.json.encode(pair), MAX_PAIRS, PAIRS_TTL_S)

    async def pairs(self, name: str) -> list[Pair]:
        key = keys.shadow_pairs(name)
        found = await self._run("pairs", [key])
        return self._foreign.read_all(STRUCTURE, [(key.encode(), each) for each in found], _decode_pair)

    def _decoded(self, parts: Sequence[bytes], decode: Callable[[bytes], T]) -> list[T]:
        """Return the values of a hash that can be read."""
        return self._foreign.read_all(STRUCTURE, zip(parts[::2], parts[1::2], strict=True), decode)

    async def _run(self, command: str, names: Sequence[str], *args: str | int | bytes) -> Any:
        async with self._server.reaching("the splits of traffic"):
            return await self._script(command, names, *args)


class MemoryTrafficStore:
    """TrafficStore in memory."""

    def __init__(self) -> None:
        self._splits: dict[str, Split] = {}
        self._shadows: dict[str, Shadow] = {}
        self._pairs: dict[str, deque[Pair]] = {}

    async def traffic(self) -> Traffic:
        return Traffic(dict(self._splits), dict(self._shadows))

    async def set_split(self, split: Split) -> None:
        self._splits[split.name] = split

    async def remove_split(self, name: str) -> bool:
        return self._splits.pop(name, None) is not None

    async def set_shadow(self, shadow: Shadow) -> None:
        self._shadows[shadow.name] = shadow
        self._pairs.pop(shadow.name, None)

    async def remove_shadow(self, name: str) -> bool:
        return self._shadows.pop(name, None) is not None

    async def add_pair(self, name: str, pair: Pair) -> None:
        self._pairs.setdefault(name, deque(maxlen=MAX_PAIRS)).appendleft(pair)

    async def pairs(self, name: str) -> list[Pair]:
        return list(self._pairs.get(name, ()))
