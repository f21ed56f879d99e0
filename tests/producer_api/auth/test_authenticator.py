"""API keys, their scopes, and isolation between tenants."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
from fastapi import FastAPI

from producer_api.admin_app import create_admin_app
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.protocol import ErrorInfo
from shared.settings import Settings
from tests.support.api_server import administering, calling, chat, serving
from tests.support.fakes import MODEL, make_request
from tests.support.scripted_worker import ScriptedWorker

PAGES = {
    *("/", "/web/app.js", "/web/answer.js", "/web/app.css"),
    *("/docs", "/web/docs.js", "/web/docs.css"),
    "/favicon.ico",
}
PROBES = {"/health", "/ready", "/live", "/ping", "/healthz", "/livez", "/readyz", "/version"}
PUBLIC = {*PROBES, "/v2/health/live", "/v2/health/ready", "/openapi.json", *PAGES}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": True})


@pytest.fixture
async def keys(settings: Settings) -> AsyncIterator[ApiKeys]:
    async with Database.from_settings(settings) as database:
        yield ApiKeys(database, pepper_of(settings))


@asynccontextmanager
async def caller(
    app: FastAPI, keys: ApiKeys, tenant: str = "t", **scopes: object
) -> AsyncIterator[httpx.AsyncClient]:
    """Calls with a new key."""
    _, key = await keys.create(tenant=tenant, scopes=Scopes.parse(**scopes))
    async with calling(app, key) as client:
        yield client


async def test_only_named_endpoints_answer_without_a_key(app: FastAPI) -> None:
    """Given every endpoint, expect 401 without a key, however its path is spelled, except for the public ones."""
    public = set()
    async with calling(app) as client:
        for endpoint in app.state.endpoints.endpoints:
            path = endpoint.path.replace(":path", "").replace("{", "").replace("}", "")
            answer = await client.request(endpoint.method, path, json=chat())
            if endpoint.public:
                public.add(path)
                assert answer.status_code in (200, 503), path
                continue
            spelled = await client.request(endpoint.method, f"http://localhost/{path}//", json=chat())
            if (endpoint.method, path) == ("DELETE", "/v1/dead-letters"):
                assert spelled.status_code == 404  # it may be the path of one letter, whose id is missing
                spelled = answer
            for refused in (answer, spelled):
                assert refused.status_code == 401, (endpoint.method, path)
                assert refused.headers["www-authenticate"] == 'Bearer realm="headrace"'
                assert refused.headers["x-request-id"]
                assert "missing API key" in refused.text
    assert public == PUBLIC


async def test_an_invalid_key_is_401(app: FastAPI, keys: ApiKeys) -> None:
    _, key = await keys.create(tenant="t", scopes=Scopes())
    revoked, gone = await keys.create(tenant="t", scopes=Scopes())
    await keys.revoke(revoked.id)
    _, late = await keys.create(tenant="t", scopes=Scopes(), expires_at=time.time() + 0.05)
    time.sleep(0.1)
    swapped = f"hr_{revoked.id}_{key.rsplit('_')[-1]}"
    other = f"{key[:-1]}{'0' if key[-1] != '0' else '1'}"
    for given in ("x", "sk-123", key[:-1], key.upper(), other, swapped, gone, late, f"hr_{'0' * 12}_{'0' * 64}"):
        async with calling(app, given) as client:
            answer = await client.get("/v1/models")
            assert answer.status_code == 401, given
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.json()["error"]["type"] == "authentication_error"
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
            assert given.rsplit("_")[-1] not in answer.text or len(given) < 10
    for header in (f"Basic {key}", key, "Bearer", "Bearer  "):
        async with calling(app) as client:
            assert (await client.get("/v1/models", headers={"authorization": header})).status_code == 401
    async with calling(app) as client:
        twice = [("authorization", f"Bearer {key}")] * 2
        assert (await client.get("/v1/models", headers=twice)).status_code == 401
        assert (await client.get("/v1/models", headers=twice[:1])).status_code == 200
        assert (await client.get("/v1/models", headers={"authorization": f"bearer {key}"})).status_code == 200
        assert (await client.get("/health", headers={"authorization": "Bearer wrong"})).status_code == 200


async def test_the_sdk_raises_its_own_errors(
    settings: Settings, backend: Backend, worker: ScriptedWorker, keys: ApiKeys
) -> None:
    _, key = await keys.create(tenant="t", scopes=Scopes.parse(routes=["jobs"]))
    async with serving(settings, backend) as url:
        for given, error in (("sk-none", openai.AuthenticationError), (key, openai.PermissionDeniedError)):
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=given) as client:
                with pytest.raises(error):
                    await client.chat.completions.create(**chat())


async def test_scopes_limit_models_groups_and_classes(app: FastAPI, keys: ApiKeys) -> None:
    async with caller(app, keys, models=["other"]) as client:
        for path, body in (("/v1/chat/completions", chat()), ("/v1/jobs", {"model": MODEL, "prompt": "x"})):
            answer = await client.post(path, json=body)
            assert (answer.status_code, "permission_denied" in answer.text) == (403, True), path
        assert (await client.get(f"/v1/models/{MODEL}")).status_code == 403
        assert (await client.get("/v1/models")).json()["data"] == []
        assert (await client.post("/v1/jobs", json={"model": "other", "prompt": "x"})).status_code == 404
    async with caller(app, keys, routes=["jobs"]) as client:
        assert (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).status_code == 202
        answer = await client.post("/v1/chat/completions", json=chat())
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert (await client.get("/v1/files")).status_code == 403
    pair = {"model": "absent", "queries": "x", "documents": "y"}
    for routes, status in ((["pooling"], 404), (["embeddings"], 403)):
        async with caller(app, keys, routes=routes) as client:
            assert (await client.post("/score", json=pair)).status_code == status
    async with caller(app, keys, classes=["batch"]) as client:
        job = {"model": MODEL, "prompt": "x"}
        assert (await client.post("/v1/jobs", json=job)).status_code == 403
        assert (await client.post("/v1/jobs", json=job | {"priority": "batch"})).status_code == 202
    async with caller(app, keys, classes=["interactive"]) as client:
        body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert (await client.post("/v1/batches", json=body)).status_code == 403


async def test_the_admin_port_needs_an_admin_key(app: FastAPI, keys: ApiKeys, backend: Backend) -> None:
    letters = [
        DeadLetter(make_request(tenant=tenant), ErrorInfo("engine_failed", "it broke"), 1, 1.0) for tenant in "ab"
    ]
    for letter in letters:
        await backend.dead_letters.add(letter)
    (_, plain), (_, key) = [
        await keys.create(tenant="t", scopes=Scopes.parse(admin=admin)) for admin in (False, True)
    ]
    for given, status in ((None, 401), (plain, 403)):
        async with administering(app, given) as client:
            for endpoint in create_admin_app(app.state.context).state.endpoints.endpoints:
                found = (await client.request(endpoint.method, endpoint.path)).status_code
                assert found == (200 if endpoint.public else status), endpoint.path
    async with administering(app, key) as client, calling(app, key) as public:
        assert "headrace_api_requests" in (await client.get("/metrics")).text
        assert (await public.get("/metrics")).status_code == 404
        assert (await public.get("/v1/dead-letters")).json()["data"] == []
        assert {each["tenant"] for each in (await client.get("/v1/dead-letters")).json()["data"]} == {"a", "b"}
        again = [
            await client.post(f"/v1/dead-letters/{letters[0].id}/replay", headers={"idempotency-key": "k"})
            for _ in range(2)
        ]
        assert again[0].json()["id"] == again[1].json()["id"]
        record = await backend.token_log.record(again[0].json()["id"])
        assert record is not None
        assert record.tenant == "a"
        assert (await client.delete("/v1/dead-letters")).json() == {"removed": 1}


async def test_another_tenants_objects_are_404(
    app: FastAPI, keys: ApiKeys, backend: Backend, worker: ScriptedWorker
) -> None:
    async with caller(app, keys, "one") as one, caller(app, keys, "two") as two:
        named = {"idempotency-key": "k"}
        body = {"model": MODEL, "prompt": "x"}
        job = (await one.post("/v1/jobs", json=body, headers=named)).json()["id"]
        made = (await two.post("/v1/jobs", json=body | {"prompt": "y"}, headers=named)).json()["id"]
        assert made != job
        form = {"file": ("in.jsonl", b"{}")}
        file = (await one.post("/v1/files", files=form, data={"purpose": "batch"})).json()["id"]
        batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id = (await one.post("/v1/batches", json=batch)).json()["id"]
        asked = {"model": MODEL, "input": "x", "background": True}
        response = (await one.post("/v1/responses", json=asked)).json()["id"]
        letter = make_request(tenant="one")
        await backend.dead_letters.add(DeadLetter(letter, ErrorInfo("engine_failed", "it broke"), 1, 1.0))
        for method, path in (
            ("GET", f"/v1/jobs/{job}"),
            ("GET", f"/v1/jobs/{job}/events"),
            ("DELETE", f"/v1/jobs/{job}"),
            ("GET", f"/v1/files/{file}"),
            ("GET", f"/v1/files/{file}/content"),
            ("DELETE", f"/v1/files/{file}"),
            ("GET", f"/v1/batches/{batch_id}"),
            ("POST", f"/v1/batches/{batch_id}/cancel"),
            ("GET", f"/v1/responses/{response}"),
            ("GET", f"/v1/responses/{response}?stream=true"),
            ("GET", f"/v1/responses/{response}/input_items"),
            ("POST", f"/v1/responses/{response}/cancel"),
            ("DELETE", f"/v1/responses/{response}"),
            ("GET", f"/v1/jobs/{response.replace('resp_', 'req_')}"),
            ("GET", f"/v1/dead-letters/{letter.id}"),
            ("POST", f"/v1/dead-letters/{letter.id}/replay"),
            ("DELETE", f"/v1/dead-letters/{letter.id}"),
        ):
            assert (await two.request(method, path)).status_code == 404, (method, path)
        assert (await two.post("/v1/batches", json=batch)).status_code == 404
        after = {"model": MODEL, "input": "x", "previous_response_id": response}
        assert (await two.post("/v1/responses", json=after)).status_code == 404
        for path in ("/v1/files", "/v1/batches", "/v1/dead-letters"):
            assert (await two.get(path)).json()["data"] == []
            assert len((await one.get(path)).json()["data"]) == 1
        assert (await two.delete("/v1/dead-letters")).json() == {"removed": 0}
        assert (await one.get(f"/v1/jobs/{job}")).json()["state"] == "queued"
        pulled = [(await worker.take()).request.tenant for _ in range(3)]
        assert sorted(pulled) == ["one", "one", "two"]
