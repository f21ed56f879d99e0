"""Keys on the admin port: their scopes, and the models that they may see and change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from producer_api.app import create_app
from producer_api.routes.catalog import ADMIN
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.errors import RequestAbandoned
from shared.protocol import ErrorInfo
from shared.repository.traffic.rules import Branch, Split
from shared.settings import Settings
from tests.support.admin_port import QUEUE, SECRET, other_model, publish
from tests.support.api_server import administering
from tests.support.fakes import MODEL, make_request
from tests.support.scripted_worker import ScriptedWorker


async def test_keys_of_another_scope_are_refused(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    app = create_app(settings.model_copy(update={"auth": True}), backend)
    await other_model(backend)
    database = Database.from_settings(settings)
    keys = ApiKeys(database, pepper_of(settings))
    limited, key = await keys.create(tenant="ops", scopes=Scopes.parse(admin=True, models=["org/other"]))
    _, plain = await keys.create(tenant="a", scopes=Scopes())
    async with administering(app, plain) as client:
        for path in ("overview", "requests", "queues", "workers", "audit"):
            refused = await client.get(f"/admin/{path}")
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
    job_id = await publish(backend)
    async with administering(app, key) as client:
        for method, path in (
            ("POST", f"{QUEUE}/pause"),
            ("GET", QUEUE),
            ("GET", f"/admin/requests?model={MODEL}"),
            ("GET", f"/admin/requests/{job_id}"),
            ("GET", f"/v1/jobs/{job_id}/timeline"),
            ("GET", f"/admin/workers?model={MODEL}"),
            ("GET", "/admin/audit"),
        ):
            refused = await client.request(method, path)
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied"), path
        assert (await client.get("/admin/requests")).json()["data"] == []
        assert [each["id"] for each in (await client.get("/admin/overview")).json()["workers"]] == ["w2"]
        assert (await client.post("/admin/queues/org/other/tenants/a/pause")).status_code == 200
        assert (await client.post("/admin/queues/org/other/tenants/b/pause")).status_code == 404
    entries = await backend.audit.list(8)
    assert [(each.key_id, each.tenant, each.status) for each in entries] == [
        (limited.id, "ops", 404),
        (limited.id, "ops", 200),
        (limited.id, "ops", 403),
    ]
    await database.close()
    await app.state.context.close()


@pytest.fixture
async def limited(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the admin port whose key is for the model org/other only."""
    app = create_app(settings.model_copy(update={"auth": True}), backend)
    await other_model(backend)
    database = Database.from_settings(settings)
    scopes = Scopes.parse(admin=True, models=["org/other"])
    _, key = await ApiKeys(database, pepper_of(settings)).create(tenant="ops", scopes=scopes)
    async with administering(app, key) as client:
        yield client
    await database.close()
    await app.state.context.close()


async def test_a_key_of_some_models_is_refused_on_the_others(limited: httpx.AsyncClient, backend: Backend) -> None:
    """Every route of administration that names a model, with whichever body."""
    named = [each for each in ADMIN if each.admin and "{name" in each.path]
    assert len(named) > 10
    for each in named:
        path = (
            each.path.replace("{name:path}", MODEL)
            .replace("{name}", MODEL)
            .replace("{tenant_name:path}", "default")
        )
        refused = await limited.request(each.method, path)
        assert refused.status_code == 403, f"{each.method} {path}"
    for method, path in (("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")):
        assert (await limited.request(method, path)).status_code == 403, path
    for rule, body in (("split", {"branches": [{"model": MODEL}]}), ("shadow", {"model": MODEL})):
        assert (await limited.post(f"/admin/models/org/other/{rule}", json=body)).status_code == 403
    assert await backend.registry.asleep() == frozenset()


async def test_a_key_of_some_models_sees_nothing_of_the_others(
    limited: httpx.AsyncClient, backend: Backend
) -> None:
    letter = DeadLetter(make_request(SECRET), ErrorInfo.from_error(RequestAbandoned("x")), 3, 1.0)
    await backend.dead_letters.add(letter)
    assert (await limited.get("/v1/dead-letters")).json()["data"] == []
    assert (await limited.delete("/v1/dead-letters")).json()["removed"] == 0
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/replay")):
        refused = await limited.request(method, f"/v1/dead-letters/{letter.id}{path}")
        assert refused.status_code == 403, f"{method} {path}"
        assert SECRET not in refused.text
    await backend.traffic.set_split(Split(name=MODEL, branches=(Branch(model="org/other"),)))
    assert (await limited.get("/admin/traffic")).json()["splits"] == []
    for path in ("/health", "/ready"):
        assert {each["model"] for each in (await limited.get(path)).json()["workers"]} <= {"org/other"}


async def test_a_tenant_of_tokens_is_paused_before_its_first_request(
    settings: Settings, backend: Backend, worker: ScriptedWorker, tmp_path: Path
) -> None:
    (tmp_path / "jwks.json").write_text('{"keys": []}', encoding="utf-8")
    tokens = {"jwt_jwks": str(tmp_path / "jwks.json"), "jwt_issuer": "i", "jwt_audience": "a"}
    settings = settings.model_copy(update={"auth": True, **tokens})
    async with Database.from_settings(settings) as database:
        _, key = await ApiKeys(database, pepper_of(settings)).create(tenant="ops", scopes=Scopes(admin=True))
    app = create_app(settings, backend)
    async with administering(app, key) as admin:
        assert (await admin.post(f"{QUEUE}/tenants/new/pause")).status_code == 200
        assert (await admin.post(f"{QUEUE}/tenants/%20/pause")).status_code == 404
    assert await backend.queues.knows(MODEL, "new")
    await app.state.context.database.close()
