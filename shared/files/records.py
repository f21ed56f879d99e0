"""Records of files: owner, purpose, size and expiry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import NotFound, StorageFull
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.foreign import UNREADABLE
from shared.redis.script import Script


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Record of one file; `size` in bytes, times in seconds since the epoch by the server's clock."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size: int
    created_at: float
    expires_at: float


_decode = msgspec.json.Decoder(FileRecord).decode


class FileRecords:
    """Records of all files. Every call raises Unavailable if the store cannot be reached in time.

    Args:
        most_bytes: maximum size of all files together.
    """

    def __init__(self, server: RedisServer, *, most_bytes: int) -> None:
        self._server = server
        self._script = Script(server, "files", Path(__file__).with_suffix(".lua"))
        self._most_bytes = most_bytes

    async def add(self, record: FileRecord) -> None:
        """Add a record. Idempotent by id. Raises StorageFull."""
        made, ends = int(record.created_at * 1000), int(record.expires_at * 1000)
        encoded = msgspec.json.encode(record)
        if not await self._run("add", record.tenant, record.id, made, ends, record.size, self._most_bytes, encoded):
            raise self._full()

    async def check_room(self, size: int) -> None:
        """Raise StorageFull if `size` more bytes do not fit."""
        if await self._run("used", "") + size > self._most_bytes:
            raise self._full()

    def _full(self) -> StorageFull:
        return StorageFull(
            f"all files together must not exceed {self._most_bytes} bytes: delete some files first", param="file"
        )

    async def get(self, file_id: str, tenant: str, now: float) -> FileRecord:
        """Return a record. Raises NotFound for an unknown or expired file, and for another tenant's."""
        data = await self._run("get", tenant, file_id)
        record = None if data is None else _record(file_id.encode(), data)
        if record is None or record.tenant != tenant or record.expires_at <= now:
            raise NotFound(f"there is no file {file_id[:64]!r}")
        return record

    async def list(self, tenant: str, *, after: str, most: int, oldest_first: bool) -> Sequence[FileRecord]:
        """List the records after the file `after`. Raises NotFound if that file is unknown."""
        while True:
            found = await self._run("list", tenant, after, most, int(oldest_first))
            if found is None:
                raise NotFound(f"there is no file {after[:64]!r}", param="after")
            records = await self._known(tenant, found)
            if 2 * len(records) == len(found):
                return records

    async def _known(self, tenant: str, reply: Iterable[bytes]) -> Sequence[FileRecord]:
        """Decode id, record …; set foreign data aside."""
        parts = iter(reply)
        found = {file_id: _record(file_id, data) for file_id, data in zip(parts, parts, strict=True)}
        if foreign := [file_id for file_id, record in found.items() if record is None]:
            await self._run("refuse", tenant, *foreign)
        return [record for record in found.values() if record is not None]

    async def remove(self, record: FileRecord) -> bool:
        """Delete a record. Returns whether it existed."""
        removed: int = await self._run("remove", record.tenant, record.id)
        return removed == 1

    async def known(self, file_id: str) -> bool:
        return await self._run("get", "", file_id) is not None

    async def ended(self, now: float, most: int) -> Sequence[FileRecord]:
        """Return some of the expired files."""
        return await self._known("", await self._run("ended", "", int(now * 1000), most))

    async def _run(self, command: str, tenant: str, *args: Any) -> Any:
        async with self._server.reaching("the files"):
            return await self._script(command, [*keys.FILES, keys.files_of(tenant)], *args)


def _record(file_id: bytes, data: bytes) -> FileRecord | None:
    """Decode a record; None for foreign data."""
    try:
        record = _decode(data)
    except UNREADABLE:
        return None
    return record if record.id.encode(errors="replace") == file_id else None
