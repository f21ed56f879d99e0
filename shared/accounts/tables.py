"""Tables of the accounts' database. Changes to existing tables belong into MIGRATIONS."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

# One list of statements per version after the first, for older databases; new ones are created from the tables.
MIGRATIONS: tuple[tuple[str, ...], ...] = (("ALTER TABLE usage RENAME COLUMN request_id TO job_id",),)

schema_version = Table("headrace_schema", metadata, Column("version", Integer, nullable=False))

# Times are in seconds since the epoch. A scope is a JSON array of names; null means all.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("tenant", String(128), nullable=False, index=True),
    Column("label", Text, nullable=False),
    Column("plan", String(64), nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("models", Text),
    Column("routes", Text),
    Column("classes", Text),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("replaced_by", String(32)),
)

# One row per finished request; `day` is that of its admission, in days since 1970-01-01, UTC.
usage = Table(
    "usage",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(128), nullable=False),
    Column("user_name", String(256), nullable=False),
    Column("model", String(128), nullable=False),
    Column("day", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("finish", String(64), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("created_at", Double, nullable=False, index=True),
    Column("started_at", Double),
    Column("first_token_at", Double),
    Column("finished_at", Double, nullable=False),
    Index("usage_by_day", "day", "tenant", "key_id", "model"),
)
