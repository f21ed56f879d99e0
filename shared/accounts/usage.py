"""Usage records: one row per finished request, and their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select

from shared.accounts.database import Database
from shared.accounts.tables import usage
from shared.ledger.types import End, Entry

GROUPS = ("tenant", "key", "user", "model", "day", "state")
MAX_GROUPS = 100_000  # in one report
PRUNE_ROWS = 10_000  # deleted in one transaction


@dataclass(frozen=True)
class Filters:
    """Filters on records; an empty field matches all. Days are UTC days of admission; `until` is exclusive."""

    tenant: str = ""
    key: str = ""
    user: str = ""
    model: str = ""
    since: date | None = None
    until: date | None = None

    def clauses(self) -> list[ColumnElement[bool]]:
        chosen = [
            (usage.c.tenant, self.tenant),
            (usage.c.key_id, self.key),
            (usage.c.user_name, self.user),
            (usage.c.model, self.model),
        ]
        found = [column == value for column, value in chosen if value]
        if self.since is not None:
            found.append(usage.c.day >= _number(self.since))
        if self.until is not None:
            found.append(usage.c.day < _number(self.until))
        return found


class UsageRecords:
    """Usage records in the database. Every call raises Unavailable if it cannot be reached in time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, ends: Sequence[tuple[str, Entry, End]]) -> None:
        """Insert records by id; existing ones stay unchanged."""
        rows = [_row(job_id, entry, end) for job_id, entry, end in ends]
        async with self._database.writing() as connection:
            insert = _insert_of(connection.dialect.name)
            await connection.execute(insert(usage).on_conflict_do_nothing(), rows)

    async def sums(self, by: Sequence[str], filters: Filters) -> list[dict[str, Any]]:
        """Return requests and tokens of each group, grouped and ordered by `by`, a subset of GROUPS."""
        columns = {
            "tenant": usage.c.tenant,
            "key": usage.c.key_id,
            "user": usage.c.user_name,
            "model": usage.c.model,
            "day": usage.c.day,
            "state": usage.c.state,
        }
        groups = [columns[name].label(name) for name in by]
        sums = (
            func.count().label("requests"),
            func.coalesce(func.sum(usage.c.prompt_tokens), 0).label("prompt_tokens"),
            func.coalesce(func.sum(usage.c.completion_tokens), 0).label("completion_tokens"),
        )
        asked = select(*groups, *sums).where(*filters.clauses()).group_by(*groups).order_by(*groups)
        async with self._database.reading() as connection:
            found = await connection.execute(asked.limit(MAX_GROUPS))
            return [_report_row(dict(row)) for row in found.mappings()]

    async def prune(self, before: float) -> int:
        """Delete records of requests admitted before a time in seconds since the epoch. Returns how many."""
        removed = 0
        while True:
            oldest = select(usage.c.job_id).where(usage.c.created_at < before).limit(PRUNE_ROWS)
            async with self._database.writing() as connection:
                done = (await connection.execute(delete(usage).where(usage.c.job_id.in_(oldest)))).rowcount
            removed += done
            if done < PRUNE_ROWS:
                return removed


EPOCH = date(1970, 1, 1)


def _insert_of(dialect: str) -> Callable[..., Any]:
    """Return the `insert` of the database in use. The other dialect's module takes 40 ms of a process' start."""
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as insert_sqlite  # noqa: PLC0415

        return insert_sqlite
    from sqlalchemy.dialects.postgresql import insert as insert_postgresql  # noqa: PLC0415

    return insert_postgresql


def _number(day: date) -> int:
    return (day - EPOCH).days


def _row(job_id: str, entry: Entry, end: End) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "tenant": entry.tenant,
        "key_id": entry.key_id,
        "user_name": entry.user,
        "model": entry.model,
        "day": _number(datetime.fromtimestamp(end.created_at, UTC).date()),
        "state": end.state,
        "finish": end.finish,
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "created_at": end.created_at,
        "started_at": end.started_at,
        "first_token_at": end.first_token_at,
        "finished_at": end.finished_at,
    }


def _report_row(row: dict[str, Any]) -> dict[str, Any]:
    if "day" in row:
        row["day"] = (EPOCH + timedelta(days=row["day"])).isoformat()
    return row
