"""Batches in Redis: each one's state, and its items of work under leases with fences. Every change is one Lua call.

It knows nothing of files' content or of how a line is run. An item is `validate`, then each chunk of lines, then
`finalize`; one that its holder does not renew in time is free for the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import Conflict, NotFound, TooManyBatches
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import LEASE, Script
from shared.settings import Settings

VALIDATE, FINALIZE = "validate", "finalize"
ENDED = ("completed", "failed", "expired", "cancelled")
LEASES = 3  # of a request make one of an item: a busy process may be late
TIMES = ("in_progress", "finalizing", "cancelling", *ENDED)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; times in seconds since the epoch by the server's clock.

    `output_life` is in seconds: how long the files that it makes are kept. `models` are those that its lines may
    name; None for all.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: float
    expires_at: float
    output_life: float
    metadata: dict[str, str] | None = None
    models: frozenset[str] | None = None
    key_id: str = ""
    plan: str = ""


class LineError(msgspec.Struct, frozen=True):
    """One reason for which a whole file is refused; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class BatchRecord:
    """A batch as it stands. `times` are whole seconds by the name of the state that was entered then."""

    batch: Batch
    status: str
    total: int
    completed: int
    failed: int
    times: Mapping[str, int]
    errors: tuple[LineError, ...]
    output_file_id: str | None
    error_file_id: str | None


@dataclass(frozen=True)
class Chunk:
    """Lines of a batch's input: `count` of them from byte `offset`, the first with number `first`, from 1."""

    offset: int
    first: int
    count: int

    def encode(self) -> str:
        return f"{self.offset} {self.first} {self.count}"

    @classmethod
    def decode(cls, text: str) -> Chunk:
        return cls(*map(int, text.split()))


@dataclass(frozen=True)
class Item:
    """A held item of work; `status` is the batch's when it was claimed."""

    batch_id: str
    name: str
    fence: str
    status: str
    chunk: Chunk | None


_batch = msgspec.json.Decoder(Batch).decode
_errors = msgspec.json.Decoder(tuple[LineError, ...]).decode


class Batches:
    """All batches. Every call raises Unavailable when the store cannot be reached in time.

    Args:
        most_open: bound on batches that have not ended.
        ttl: seconds that one that has ended is kept.
        lease: seconds that an item is held without being renewed.
    """

    def __init__(self, server: RedisServer, *, most_open: int, ttl: float, lease: float) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, "batches", LEASE, Path(__file__).with_suffix(".lua"))
        self._most_open = most_open
        self._ttl = int(ttl * 1000)
        self._lease = int(lease * 1000)

    @classmethod
    def of(cls, settings: Settings, server: RedisServer) -> Batches:
        return cls(server, most_open=settings.max_batches, ttl=settings.batch_ttl, lease=settings.lease * LEASES)

    async def create(self, batch: Batch) -> None:
        """Idempotent by id. Raises TooManyBatches."""
        encoded = msgspec.json.encode(batch)
        if not await self._run("create", batch.id, batch.id, self._most_open, encoded, tenant=batch.tenant):
            raise TooManyBatches(f"{self._most_open} batches are open already", retry_after=60)
        await self._wake(batch.id)

    async def get(self, batch_id: str, tenant: str | None = None) -> BatchRecord:
        """Raises NotFound for an unknown id, and for one of another than `tenant`, if that is given."""
        fields = await self._run("get", batch_id)
        record = self._known(fields) if fields else None
        if record is None or tenant not in (None, record.batch.tenant):
            raise NotFound(f"there is no batch {batch_id[:64]!r}")
        return record

    async def list(self, tenant: str, *, after: str, most: int) -> Sequence[BatchRecord]:
        """Newest first, those after the batch `after`. Raises NotFound where there is none of that id."""
        prefix, suffix = keys.batch("*")[0].split("*")
        found = await self._run("list", "", after, most, prefix, suffix, tenant=tenant)
        if found is None:
            raise NotFound(f"there is no batch {after[:64]!r}", param="after")
        return [record for fields in found if (record := self._known(fields)) is not None]

    def _known(self, reply: Sequence[bytes]) -> BatchRecord | None:
        """None where the record is not one that was written here."""
        return self._foreign.read("batches", hashlib.sha256(b"".join(reply)).digest(), lambda: _record(reply))

    async def cancel(self, batch_id: str) -> None:
        """Raises Conflict where it goes to its end already."""
        if not await self._run("cancel", batch_id):
            raise Conflict("the batch has ended, or all of its lines have")
        await self._wake(batch_id)

    async def idle(self) -> Sequence[str]:
        """The batches that have an item which nobody holds."""
        prefix, suffix = keys.batch("*")[1].split("*")
        return [batch_id.decode(errors="replace") for batch_id in await self._run("idle", "", prefix, suffix)]

    async def open(self) -> Sequence[str]:
        """All that have not ended."""
        return [batch_id.decode(errors="replace") for batch_id in await self._run("open", "")]

    async def claim(self, batch_id: str) -> Item | None:
        """An item that nobody holds, if there is one."""
        reply = await self._run("claim", batch_id, self._lease)
        if reply is None:
            return None
        name, fence, chunk, status = (part.decode() for part in reply)
        return Item(batch_id, name, fence, status, Chunk.decode(chunk) if chunk else None)

    async def renew(self, item: Item, completed: int, failed: int) -> str | None:
        """Hold it for longer and tell how far it is; the batch's status, or None where somebody else holds it."""
        status = await self._run("renew", item.batch_id, item.name, item.fence, completed, failed, self._lease)
        return None if status is None else str(status.decode())

    async def release(self, item: Item) -> None:
        await self._run("release", item.batch_id, item.name, item.fence)

    async def plan(self, item: Item, total: int, chunks: Iterable[Chunk]) -> bool:
        """The input is valid, and is to be run in `chunks`; False where somebody else holds the item."""
        encoded = [chunk.encode() for chunk in chunks]
        return bool(await self._run("plan", item.batch_id, item.fence, total, *encoded))

    async def fail(self, item: Item, errors: Sequence[LineError]) -> bool:
        """The input is refused."""
        encoded = msgspec.json.encode(errors)
        return bool(await self._run("fail", item.batch_id, item.batch_id, item.fence, encoded, self._ttl))

    async def done(self, item: Item, completed: int, failed: int, *, late: bool) -> bool:
        """A chunk's results are durable; `late` if some of its lines did not run in time."""
        counts = (completed, failed, int(late))
        return bool(await self._run("done", item.batch_id, item.name, item.fence, *counts))

    async def results(self, batch_id: str) -> Sequence[str]:
        """The fence under which each chunk's results were made durable, by the chunks' order."""
        return [fence.decode() for fence in await self._run("results", batch_id)]

    async def finish(self, item: Item, output: str | None, errors: str | None) -> bool:
        """The batch has ended, with these files."""
        files = (output or "", errors or "")
        return bool(await self._run("finish", item.batch_id, item.batch_id, item.fence, *files, self._ttl))

    async def _wake(self, batch_id: str) -> None:
        async with self._server.reaching("the batches"):
            await self._server.client.publish(keys.BATCH_WAKE, batch_id)

    async def _run(self, command: str, batch_id: str, *args: Any, tenant: str = "") -> Any:
        async with self._server.reaching("the batches"):
            names = [keys.OPEN_BATCHES, keys.batches_of(tenant), *keys.batch(batch_id)]
            return await self._script(command, names, *args)


def chunk_name(number: int) -> str:
    """The item's name of a chunk."""
    return f"{number:08d}"


def _record(reply: Sequence[bytes]) -> BatchRecord:
    parts = iter(reply)
    fields = dict(zip(parts, parts, strict=True))

    def text(name: bytes) -> str | None:
        return fields[name].decode() if name in fields else None

    return BatchRecord(
        batch=_batch(fields[b"batch"]),
        status=fields[b"status"].decode(),
        total=int(fields[b"total"]),
        completed=int(fields[b"completed"]),
        failed=int(fields[b"failed"]),
        times={name: int(fields[at]) for name in TIMES if (at := f"{name}_at".encode()) in fields},
        errors=_errors(fields[b"errors"]) if b"errors" in fields else (),
        output_file_id=text(b"output_file_id"),
        error_file_id=text(b"error_file_id"),
    )
