"""The tables of the accounts' database. What changes a table that is out there already is a MIGRATION."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Integer, MetaData, String, Table, Text

metadata = MetaData()

# One statement list per version after the first, for databases made before it; new ones are made from the tables.
MIGRATIONS: tuple[tuple[str, ...], ...] = ()

schema_version = Table("headrace_schema", metadata, Column("version", Integer, nullable=False))

# Times are in seconds since the epoch. A scope is a JSON array of names, null for all.
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
