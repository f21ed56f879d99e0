"""The accounts' database: SQLite in `data_dir`, or Postgres at `database_url`.

The first use opens it and brings its schema up to date.
"""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, event, insert, inspect, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.accounts.tables import MIGRATIONS, metadata, schema_version
from shared.errors import ConfigError, Unavailable
from shared.settings import Settings

FILE = "accounts.db"
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
MAX_CONNECTIONS = 4  # of one process
TIMEOUT_S = 5.0  # of one use
RETRY_AFTER_S = 1.0
MIGRATION_LOCK = 0x48656164  # advisory lock in Postgres while the schema changes
WRITES = "headrace_writes"


class Database:
    """Pool of connections; each use is one transaction.

    Args:
        url: URL of SQLite or Postgres.

    Raises:
        ConfigError: the URL is of neither, or its driver is not installed.
    """

    def __init__(self, url: URL) -> None:
        self._engine = _engine(url)
        self._sqlite = url.get_backend_name() == "sqlite"
        self._file = Path(url.database) if self._sqlite and url.database else None
        self._current = False
        self._migrating = asyncio.Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        if settings.database_url is None:
            return cls(URL.create("sqlite", database=str(settings.data_dir.absolute() / FILE)))
        try:
            return cls(make_url(settings.database_url.get_secret_value()))
        except ArgumentError:
            raise ConfigError(
                "database_url must be a URL that begins with sqlite:// or postgresql://", param="database_url"
            ) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a read transaction. Raises Unavailable."""
        async with self._transaction(writes=False) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a write transaction, isolated from other writers and committed at its end. Raises Unavailable."""
        async with self._transaction(writes=True) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, *, writes: bool) -> AsyncIterator[AsyncConnection]:
        async with _reaching():
            if not self._current:
                await self._migrate()
            async with self._engine.connect() as connection:
                await connection.execution_options(**{WRITES: writes})
                async with connection.begin():
                    yield connection

    async def _migrate(self) -> None:
        """Create or upgrade the tables; other processes wait."""
        async with self._migrating:
            if self._current:
                return
            if self._file is not None:
                _private(self._file)
            async with self._engine.connect() as connection:
                await connection.execution_options(**{WRITES: True})
                async with connection.begin():
                    if not self._sqlite:
                        await connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": MIGRATION_LOCK})
                    await connection.run_sync(_bring_up_to_date)
            self._current = True


def _bring_up_to_date(connection: Connection) -> None:
    """Create or upgrade the tables. Raises ConfigError for a database of a newer Headrace."""
    newest = len(MIGRATIONS) + 1
    known = inspect(connection).has_table(schema_version.name)
    version = connection.execute(select(schema_version.c.version)).scalar_one() if known else newest
    if version > newest:
        raise ConfigError(
            f"the accounts' database has version {version}; this Headrace supports versions up to {newest}"
        )
    for statement in (each for migration in MIGRATIONS[version - 1 :] for each in migration):
        connection.execute(text(statement))
    metadata.create_all(connection)
    if not known:
        connection.execute(insert(schema_version).values(version=newest))
    elif version < newest:
        connection.execute(update(schema_version).values(version=newest))


def _engine(url: URL) -> AsyncEngine:
    driver = DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise ConfigError("database_url must begin with sqlite:// or postgresql://", param="database_url")
    options: dict[str, Any] = {"pool_size": MAX_CONNECTIONS, "max_overflow": 0, "pool_timeout": TIMEOUT_S}
    try:
        engine = create_async_engine(url.set(drivername=driver), hide_parameters=True, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(f"{error}: install headrace[postgres]", param="database_url") from None
    if driver == DRIVERS["sqlite"]:
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin explicitly, not where the driver guesses
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={int(TIMEOUT_S * 1000)}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _private(file: Path) -> None:
    """Create the file, if it does not exist, for its owner alone; SQLite gives its other files the same mode."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


@asynccontextmanager
async def _reaching() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield
    except (DBAPIError, PoolTimeout, OSError, builtins.TimeoutError) as error:
        kind = type(error.orig if isinstance(error, DBAPIError) and error.orig else error).__name__
        raise Unavailable(f"the accounts' database cannot be used: {kind}", retry_after=RETRY_AFTER_S) from error
