"""A database of keys in an empty folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.settings import Settings, load


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({"data_dir": tmp_path / "data"}).settings


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.from_settings(settings) as opened:
        yield opened


@pytest.fixture
def keys(settings: Settings, database: Database) -> ApiKeys:
    return ApiKeys(database, pepper_of(settings))
