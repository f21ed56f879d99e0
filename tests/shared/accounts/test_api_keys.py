"""API keys, their database and the pepper."""

from __future__ import annotations

import asyncio
import re
import stat
import time

import pytest
from sqlalchemy import select, text, update

from shared.accounts import database as databases
from shared.accounts.api_keys import KEY, ApiKeys, digest, id_of
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes, checked_tenant
from shared.accounts.tables import MIGRATIONS, api_keys, schema_version, usage
from shared.errors import ConfigError, NotFound, Unavailable
from shared.settings import Settings, load


async def test_a_key_is_kept_as_its_digest(keys: ApiKeys, settings: Settings, database: Database) -> None:
    """A new key is found by its id; its secret is in no file, and only the owner can read the files."""
    scopes = Scopes.parse(admin=True, models=["a", "b"], routes=["chat"], classes=["batch"])
    made, key = await keys.create(tenant="t", scopes=scopes, label="l", plan="p", expires_at=time.time() + 60)
    assert KEY.fullmatch(key)
    assert made.id in key
    assert (await keys.find([made.id, "0" * 12])) == {made.id: made}
    assert made.digest == digest(pepper_of(settings), key)
    await database.close()
    for file in settings.data_dir.iterdir():
        assert key.rsplit("_", 1)[1].encode() not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_list(keys: ApiKeys) -> None:
    """Keys are listed by the beginning of an id, by tenant and by state."""
    one, _ = await keys.create(tenant="one", scopes=Scopes())
    two, _ = await keys.create(tenant="two", scopes=Scopes())
    await keys.revoke(one.id)
    assert [key.id for key in await keys.list()] == [two.id]
    assert [key.id for key in await keys.list(ended=True)] == [two.id, one.id]
    assert [key.id for key in await keys.list(tenant="one", ended=True)] == [one.id]
    assert [key.id for key in await keys.list(prefix=two.id[:5])] == [two.id]
    assert await keys.list(prefix="%") == []


async def test_revoke(keys: ApiKeys) -> None:
    """Revoking is permanent and idempotent; unknown keys are not found."""
    made, _ = await keys.create(tenant="t", scopes=Scopes())
    assert made.ended(time.time()) is None
    revoked = await keys.revoke(made.id)
    assert revoked.ended(time.time()) == "was revoked"
    assert await keys.revoke(made.id) == revoked
    with pytest.raises(NotFound, match="hr_000000000000"):
        await keys.revoke("0" * 12)
    with pytest.raises(ConfigError, match="was revoked"):
        await keys.rotate(made.id, overlap=0)


async def test_rotate(keys: ApiKeys) -> None:
    """Rotation creates a key with the same rights and lifetime; the old one expires after the overlap."""
    scopes = Scopes.parse(models=["a"])
    old, _ = await keys.create(tenant="t", scopes=scopes, label="l", plan="p", expires_at=time.time() + 1000)
    made, key = await keys.rotate(old.id, overlap=60)
    assert KEY.fullmatch(key)
    assert (made.tenant, made.scopes, made.label, made.plan) == ("t", scopes, "l", "p")
    assert made.expires_at == pytest.approx(time.time() + 1000, abs=5)
    found = (await keys.find([old.id]))[old.id]
    assert found.replaced_by == made.id
    assert found.ended(time.time()) is None
    assert found.ended(time.time() + 61) == "has expired"
    with pytest.raises(ConfigError, match="rotated"):
        await keys.rotate(old.id, overlap=0)


def test_what_is_no_name() -> None:
    """Invalid names are refused with their kind."""
    with pytest.raises(ConfigError, match="'x y' is not a valid model"):
        Scopes.parse(models=["x y"])
    with pytest.raises(ConfigError, match="is not a valid route; allowed: chat"):
        Scopes.parse(routes=["keys"])
    with pytest.raises(ConfigError, match="interactive, standard, batch"):
        Scopes.parse(classes=["urgent"])
    for tenant in ("", "a b", "-x", "x" * 129, "{x}", "x*"):
        with pytest.raises(ConfigError, match="tenant"):
            checked_tenant(tenant)
    assert checked_tenant("auth0|5f7c") == "auth0|5f7c"


def test_ids_in_what_is_pasted() -> None:
    """An id, its beginning and a whole key yield the id; other text is refused."""
    key_id = "0123456789ab"
    assert {id_of(given) for given in (key_id, f"hr_{key_id}", f"hr_{key_id}_{'f' * 64}", f" {key_id}\n")} == {
        key_id
    }
    assert id_of("hr_01") == "01"
    for given in ("", "hr_", "sk-abc", "hr_xyz"):
        with pytest.raises(ConfigError):
            id_of(given)


def test_pepper(settings: Settings) -> None:
    """A missing pepper is generated once, readable by its owner alone; the setting has precedence."""
    first = pepper_of(settings)
    assert re.fullmatch(rb"[0-9a-f]{64}", first)
    assert pepper_of(settings) == first
    file = settings.data_dir / "key-pepper"
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        pepper_of(settings)
    given = {"data_dir": settings.data_dir, "key_pepper": "x" * 32}
    assert pepper_of(load(given).settings) == b"x" * 32
    with pytest.raises(ConfigError, match="32 characters"):
        pepper_of(load(given | {"key_pepper": "short"}).settings)
    with pytest.raises(ConfigError, match="openssl rand"):
        pepper_of(load({"database_url": "postgresql://db/headrace"}).settings)


async def test_two_begin_at_once(settings: Settings) -> None:
    """Processes that first use a database together create one schema, and all succeed."""
    async with Database.from_settings(settings) as one, Database.from_settings(settings) as two:
        pepper = pepper_of(settings)
        made = await asyncio.gather(
            *(ApiKeys(each, pepper).create(tenant="t", scopes=Scopes()) for each in (one, two) for _ in range(4))
        )
        assert len(await ApiKeys(one, pepper).list()) == len(made)


async def test_schema_of_another_version(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older database is upgraded once and keeps its keys; a newer one is refused."""
    keys = ApiKeys(database, pepper_of(settings))
    made, _ = await keys.create(tenant="t", scopes=Scopes())
    newest = len(MIGRATIONS) + 1
    more = (*MIGRATIONS, ("ALTER TABLE api_keys ADD COLUMN motto TEXT",))
    monkeypatch.setattr(databases, "MIGRATIONS", more)
    for _ in range(2):
        async with Database.from_settings(settings) as newer:
            assert (await ApiKeys(newer, b"").find([made.id]))[made.id] == made
            async with newer.writing() as connection:
                await connection.execute(text("UPDATE api_keys SET motto = 'x'"))
                assert (await connection.execute(select(schema_version.c.version))).scalar_one() == newest + 1
    async with database.writing() as connection:
        await connection.execute(update(schema_version).values(version=9))
    async with Database.from_settings(settings) as older:
        with pytest.raises(ConfigError, match="version 9"):
            await ApiKeys(older, b"").list()


async def test_a_database_of_version_1_still_opens(settings: Settings) -> None:
    """Usage records from before the column `request_id` was renamed are found under `job_id`."""
    record = "'req_1', 't', 'k', '', 'm', 20000, 'completed', 'stop', 3, 4, 1.0, 2.0, 3.0, 4.0"
    async with Database.from_settings(settings) as first, first.writing() as connection:
        await connection.execute(text("ALTER TABLE usage RENAME COLUMN job_id TO request_id"))
        await connection.execute(text(f"INSERT INTO usage VALUES ({record})"))
        await connection.execute(update(schema_version).values(version=1))
    async with Database.from_settings(settings) as opened, opened.reading() as connection:
        [row] = (await connection.execute(select(usage.c.job_id, usage.c.completion_tokens))).all()
    assert tuple(row) == ("req_1", 4)


async def test_a_write_is_whole_or_not_at_all(database: Database, keys: ApiKeys) -> None:
    """A failed transaction leaves nothing behind."""
    made, _ = await keys.create(tenant="t", scopes=Scopes())
    with pytest.raises(ZeroDivisionError):
        async with database.writing() as connection:
            await connection.execute(update(api_keys).values(tenant="other"))
            raise ZeroDivisionError
    assert (await keys.find([made.id]))[made.id].tenant == "t"


async def test_a_database_that_is_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A missing database is Unavailable, an invalid URL a ConfigError; neither shows the password."""
    folder = tmp_path_factory.mktemp("away")
    (folder / "accounts.db").mkdir()
    async with Database.from_settings(load({"data_dir": folder}).settings) as database:
        with pytest.raises(Unavailable, match="accounts' database"):
            async with database.reading():
                pass
    for url in ("mysql://u:hush@h/d", "nonsense", "postgresql://u:hush@h/d"):
        with pytest.raises(ConfigError) as refusal:
            Database.from_settings(load({"database_url": url}).settings)
        assert "hush" not in str(refusal.value)
