"""HEAD, OPTIONS and other spellings of a path, on a real server: the same route, with the same rules."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import httpx
import pytest
from structlog.testing import capture_logs

from producer_api.http.endpoint import Endpoint
from producer_api.http.endpoint_table import EndpointTable
from producer_api.routes import catalog
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import chat, serving
from tests.support.fakes import MODEL
from tests.support.metered import changed
from tests.support.scripted_worker import ScriptedWorker

SPELLINGS = ("{}/", "/{}", "{}//", "//{}//")


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_path_with_more_slashes_is_the_same_route(
    api: str, http: httpx.AsyncClient, worker: ScriptedWorker, spelling: str
) -> None:
    asked = asyncio.create_task(http.post(f"{api}{spelling.format('/v1/chat/completions')}", json=chat()))
    await worker.answer("hello")
    answered = await asked
    assert answered.status_code == 200, "no redirect, after which clients drop the body"
    assert answered.json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("endpoints", [catalog.API, catalog.ADMIN])
def test_an_empty_parameter_widens_no_operation(endpoints: Sequence[Endpoint]) -> None:
    """Given the path of something with an empty id, in any spelling, nothing that has no id is changed."""
    table = EndpointTable(endpoints)
    for endpoint in endpoints:
        for parameter in re.finditer(r"\{[^}]*\}", endpoint.path) if endpoint.method != "GET" else ():
            for empty in ("", "/", "%2F", "%2f/"):
                sent = endpoint.path[: parameter.start()] + empty + endpoint.path[parameter.end() :]
                found = table.match(endpoint.method, re.sub(r"\{[^}]*\}", "x", sent))
                narrow = found.template == "" or found.path_params or found.endpoint is None
                assert narrow, (endpoint.path, sent, found.template)


async def test_an_empty_id_deletes_no_dead_letters(http: httpx.AsyncClient, api: str) -> None:
    for path in ("/v1/dead-letters/", "/v1/dead-letters//", "/v1/dead-letters/%2F", "//v1/dead-letters"):
        assert (await http.delete(f"{api}{path}")).status_code == 404, path
    assert (await http.get(f"{api}/v1/dead-letters/")).status_code == 200
    assert (await http.delete(f"{api}/v1/dead-letters")).json() == {"removed": 0}


async def test_spellings_of_a_path_share_permission_charge_and_log(settings: Settings, backend: Backend) -> None:
    settings = changed(settings, auth=True, plans={"few": {"requests": "9/day"}}, default_plan="few")
    async with Database.from_settings(settings) as database:
        keys = ApiKeys(database, pepper_of(settings))
        _, key = await keys.create(tenant="t", scopes=Scopes.parse(routes=["models"]))
    with capture_logs() as logged:
        async with serving(settings, backend) as url, httpx.AsyncClient() as http:
            for spelling in ("{}", *SPELLINGS, "/%2F{}%2F"):
                path = f"{url}{spelling.format('/v1/chat/completions')}"
                assert (await http.post(path, json=chat())).status_code == 401, path
                refused = await http.post(path, json=chat(), headers={"authorization": f"Bearer {key}"})
                assert refused.status_code == 403, path
                assert refused.headers["x-ratelimit-limit-requests"] == "9", path
                models = f"{url}{spelling.format('/v1/models')}"
                assert (await http.get(models)).status_code == 401, models
                assert (await http.head(models)).status_code == 401, models
    routes = {each["route"] for each in logged if each["event"] == "request"}
    assert routes == {"/v1/chat/completions", "/v1/models"}


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/v1/models", f"/v1/models/{MODEL}", "/openapi.json", "/docs"]
)
async def test_head_is_get_without_its_body(http: httpx.AsyncClient, path: str) -> None:
    got, head = await http.get(path), await http.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    varying = ("date", "x-request-id")
    assert [each for each in head.headers.items() if each[0] not in varying] == [
        each for each in got.headers.items() if each[0] not in varying
    ]


async def test_head_of_a_stream_ends_at_once(http: httpx.AsyncClient) -> None:
    job = (await http.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
    head = await http.head(f"/v1/jobs/{job}/events")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert (await http.head("/v1/jobs/req_unknown/events")).status_code == 404


async def test_head_of_a_route_without_get_is_refused(http: httpx.AsyncClient) -> None:
    refused = await http.head("/v1/chat/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST, OPTIONS")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/chat/completions", "POST, OPTIONS"),
        ("/v1/models/", "GET, HEAD, OPTIONS"),
        ("/v1/jobs/req_1", "GET, DELETE, HEAD, OPTIONS"),
    ],
)
async def test_options_names_the_methods(http: httpx.AsyncClient, path: str, allow: str) -> None:
    answer = await http.options(path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")
    assert (await http.options("/v1/nothing")).status_code == 404


async def test_a_preflight_is_answered_by_cors_alone(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    settings = changed(settings, cors_origins="https://a.example")
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.options("/v1/chat/completions/", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "allow" not in answer.headers
        assert (
            await http.options("/v1/models", headers=preflight | {"origin": "https://b.example"})
        ).status_code == 400
        assert (await http.options("/v1/models")).status_code == 204


@pytest.mark.parametrize("path", ["/ping", "/healthz", "/livez"])
async def test_aliases_of_live(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).json() == {"status": "ok"}
    assert (await http.post("/ping")).status_code == 200


async def test_alias_of_ready_and_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/readyz")).json() == (await http.get("/ready")).json()
    assert (await http.get("/version")).json() == {"version": "0.1.0"}
