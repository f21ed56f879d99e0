"""Batches in Redis: state, and items of work under leases. Every change is one Lua call.

The items are `validate`, then each chunk of lines, then `finalize`. An item whose lease has expired is free.
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
from shared.redis.script import LEASE_DEADLINE, LEASE_EPOCH, Script
from shared.settings import Settings

VALIDATE, FINALIZE = "validate", "finalize"
ENDED = ("completed", "failed", "expired", "cancelled")
ITEM_LEASE_FACTOR = 3  # leases of a request in one of an item, since a busy process may be late
TIMES = ("in_progress", "finalizing", "cancelling", *ENDED)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Request for a batch; times in seconds since the epoch by the server's clock.

    `output_life` is how long its output files are kept, in seconds. `models` are the models that its lines may
    name; None for all. `traceparent` is the trace context of the request that created it, which its lines continue.
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
    traceparent: str = ""


class LineError(msgspec.Struct, frozen=True):
    """Reason to refuse an input file; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class BatchRecord:
    """Present state of a batch. `times` are whole seconds, by the name of the state entered then."""

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
    """Claimed item of work; `status` is the batch's at the claim.

    `chunk`: where its lines are; None if it has none, or if another program overwrote that record.
    """

    batch_id: str
    name: str
    fence: str
    status: str
    chunk: Chunk | None


_batch = msgspec.json.Decoder(Batch).decode
_errors = msgspec.json.Decoder(tuple[LineError, ...]).decode


class Batches:
    """All batches. Every call raises Unavailable if the store cannot be reached in time.

    Args:
        most_open: maximum unfinished batches.
        ttl: seconds that a finished batch is kept.
        lease: seconds that an item is held without being renewed.
    """

    def __init__(self, server: RedisServer, *, most_open: int, ttl: float, lease: float) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, "batches", LEASE_EPOCH, LEASE_DEADLINE, Path(__file__).with_suffix(".lua"))
        self._most_open = most_open
        self._ttl = int(ttl * 1000)
        self._lease = int(lease * 1000)

    @classmethod
    def from_settings(cls, settings: Settings, server: RedisServer) -> Batches:
        return cls(
            server, most_open=settings.max_batches, ttl=settings.batch_ttl, lease=settings.lease * ITEM_LEASE_FACTOR
        )

    async def create(self, batch: Batch) -> None:
        """Create a batch. Idempotent by id. Raises TooManyBatches."""
        encoded = msgspec.json.encode(batch)
        if not await self._run("create", batch.id, batch.id, self._most_open, encoded, tenant=batch.tenant):
            raise TooManyBatches(f"the limit of {self._most_open} unfinished batches is reached", retry_after=60)
        await self._wake(batch.id)

    async def get(self, batch_id: str, tenant: str | None = None) -> BatchRecord:
        """Return a batch, of `tenant` if that is given. Raises NotFound."""
        fields = await self._run("get", batch_id)
        record = self._known(fields) if fields else None
        if record is None or tenant not in (None, record.batch.tenant):
            raise NotFound(f"there is no batch {batch_id[:64]!r}")
        return record

    async def list(self, tenant: str, *, after: str, most: int) -> Sequence[BatchRecord]:
        """List batches after the batch `after`, newest first. Raises NotFound if that batch is unknown."""
        prefix, suffix = keys.batch("*")[0].split("*")
        found = await self._run("list", "", after, most, prefix, suffix, tenant=tenant)
        if found is None:
            raise NotFound(f"there is no batch {after[:64]!r}", param="after")
        return [record for fields in found if (record := self._known(fields)) is not None]

    def _known(self, reply: Sequence[bytes]) -> BatchRecord | None:
        """Decode a record; None for foreign data."""
        return self._foreign.read("batches", hashlib.sha256(b"".join(reply)).digest(), lambda: _record(reply))

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch. Raises Conflict if it is already ending."""
        if not await self._run("cancel", batch_id):
            raise Conflict("the batch cannot be cancelled: it has ended, or is finalizing")
        await self._wake(batch_id)

    async def idle(self) -> Sequence[str]:
        """Return the unfinished batches that have a free item."""
        prefix, suffix = keys.batch("*")[1].split("*")
        found = await self._run("idle", "", prefix, suffix, self._lease)
        return [batch_id.decode(errors="replace") for batch_id in found]

    async def open(self) -> Sequence[str]:
        """Return the unfinished batches."""
        return [batch_id.decode(errors="replace") for batch_id in await self._run("open", "")]

    async def claim(self, batch_id: str) -> Item | None:
        """Claim a free item, if there is one."""
        reply = await self._run("claim", batch_id, self._lease)
        if reply is None:
            return None
        name, fence, chunk, status = reply
        place = b":".join((batch_id.encode(), name))
        found = self._foreign.read("batches", place, lambda: Chunk.decode(chunk.decode())) if chunk else None
        return Item(batch_id, name.decode(), fence.decode(), status.decode(), found)

    async def renew(self, item: Item, completed: int, failed: int) -> str | None:
        """Renew the lease and report progress. Returns the batch's status, or None if the lease is lost."""
        status = await self._run("renew", item.batch_id, item.name, item.fence, completed, failed, self._lease)
        return None if status is None else str(status.decode())

    async def refuse(self, item: Item) -> None:
        """Set aside an item that another program added."""
        await self._run("refuse", item.batch_id, item.name, item.fence)

    async def give_up(self, batch_id: str) -> None:
        """Set aside a batch whose record another program deleted or overwrote: it is no longer open."""
        await self._run("give_up", batch_id, batch_id)

    async def release(self, item: Item) -> None:
        await self._run("release", item.batch_id, item.name, item.fence)

    async def plan(self, item: Item, total: int, chunks: Iterable[Chunk]) -> bool:
        """Record that the input is valid, and its chunks. Returns False if the lease is lost."""
        encoded = [chunk.encode() for chunk in chunks]
        return bool(await self._run("plan", item.batch_id, item.fence, total, *encoded))

    async def fail(self, item: Item, errors: Sequence[LineError]) -> bool:
        """Record that the input is refused, or lost. Returns False if the lease is lost."""
        encoded = msgspec.json.encode(errors)
        return bool(
            await self._run("fail", item.batch_id, item.batch_id, item.name, item.fence, encoded, self._ttl)
        )

    async def done(self, item: Item, completed: int, failed: int, *, late: bool) -> bool:
        """Record that a chunk's results are durable; `late` if some of its lines did not run in time."""
        counts = (completed, failed, int(late))
        return bool(await self._run("done", item.batch_id, item.name, item.fence, *counts))

    async def results(self, batch_id: str) -> Sequence[str]:
        """Return the lease epoch under which each chunk's results were made durable, in order."""
        return [fence.decode() for fence in await self._run("results", batch_id)]

    async def finish(self, item: Item, output: str | None, errors: str | None) -> bool:
        """Record that the batch has ended, with these files. Returns False if the lease is lost."""
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
    """Return the name of a chunk's item."""
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
