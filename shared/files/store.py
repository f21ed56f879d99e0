"""Files: a content on disk and a record in Redis. The content is written first and deleted last.

A crash can leave a content without a record; `sweep` deletes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from shared.backend import Backend
from shared.errors import StorageFull
from shared.files.content import Contents, Draft
from shared.files.records import FileRecord, FileRecords
from shared.settings import Settings

PAGE_RECORDS = 1000  # read at once
MAX_EXPIRED = 256  # files deleted in one sweep


class Files:
    """All files of an installation.

    Args:
        records: their records.
        contents: their contents.
        now: returns the server's time.
    """

    def __init__(self, records: FileRecords, contents: Contents, now: Callable[[], Awaitable[float]]) -> None:
        self.records = records
        self.contents = contents
        self._now = now

    @classmethod
    def from_settings(cls, settings: Settings, backend: Backend) -> Files:
        assert backend.server is not None, "files need a server"
        records = FileRecords(backend.server, most_bytes=settings.files_bytes)
        return cls(records, Contents(settings.files / "content"), backend.token_log.now)

    async def keep(
        self, draft: Draft, file_id: str, *, tenant: str, filename: str, purpose: str, life: float
    ) -> FileRecord:
        """Make a draft durable, then add its record for `life` seconds. Raises StorageFull, Unavailable."""
        now = await self._now()
        record = FileRecord(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            size=draft.size,
            created_at=now,
            expires_at=now + life,
        )
        await asyncio.to_thread(draft.keep)
        try:
            await self.records.add(record)
        except StorageFull:
            await asyncio.to_thread(self.contents.delete, file_id)
            raise
        return record

    async def find(self, file_id: str, tenant: str) -> FileRecord:
        """Return a record. Raises NotFound, Unavailable."""
        return await self.records.get(file_id, tenant, await self._now())

    async def page(
        self, tenant: str, *, after: str, limit: int, oldest_first: bool, purpose: str | None
    ) -> tuple[list[FileRecord], bool]:
        """Return up to `limit` files after the file `after`, and whether more follow. Raises NotFound."""
        found: list[FileRecord] = []
        now = await self._now()
        while True:
            some = await self.records.list(tenant, after=after, most=PAGE_RECORDS, oldest_first=oldest_first)
            found += [each for each in some if each.expires_at > now and purpose in (None, each.purpose)]
            if len(some) < PAGE_RECORDS or len(found) > limit:
                return found[:limit], len(found) > limit
            after = some[-1].id

    async def delete(self, record: FileRecord) -> None:
        await self.records.remove(record)
        await asyncio.to_thread(self.contents.delete, record.id)

    async def sweep(self) -> int:
        """Delete expired files and contents without a record. Returns how many. Raises Unavailable."""
        ended: Sequence[FileRecord] = await self.records.ended(await self._now(), MAX_EXPIRED)
        for record in ended:
            await self.delete(record)
        orphans = 0
        for path in await asyncio.to_thread(lambda: list(self.contents.orphan_candidates())):
            if not await self.records.known(path.name):
                await asyncio.to_thread(path.unlink, missing_ok=True)
                orphans += 1
        return len(ended) + orphans
