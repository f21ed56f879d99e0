"""The audit log of administrative actions, in pages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import SecretStr

from shared.accounts import audit_log
from shared.accounts.audit_log import Action
from shared.redis import keys
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings
from tests.support.backends import opened


def action(number: int) -> Action:
    return Action(key_id="k", tenant="t", address="", action="POST /x", target=f"number={number}", status=200)


async def test_pages_pass_over_what_another_program_wrote(
    valkey: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a page would be short, as if it were the last one, and hide all older actions."""
    monkeypatch.setattr(audit_log, "PAGE", 2)
    backend = await opened("redis", settings.model_copy(update={"redis_url": SecretStr(valkey.url)}))
    for number in range(5):
        await backend.audit.add(action(number))
        for field in ("x", "a"):
            await backend.redis.xadd(keys.AUDIT, {field: "not an action"})
    first = await backend.audit.list(3)
    milliseconds, _, order = first[-1].id.partition("-")
    rest = await backend.audit.list(3, before=(int(milliseconds), int(order)))
    found = [*first, *rest]
    assert [each.target for each in found] == [f"number={number}" for number in (4, 3, 2, 1, 0)]
    assert all(newer.at >= older.at for newer, older in pairwise(found))
    await backend.close()
