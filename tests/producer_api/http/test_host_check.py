"""Host and Origin checks of a server without keys, in the application and over a socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import administering, calling, chat, serving
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

LOOPBACK = [
    "localhost",
    "LOCALHOST:8000",
    "api.localhost:1",
    "localhost.:80",
    "127.0.0.1:8000",
    "127.8.9.1",
    "[::1]:8000",
]
OTHERS = [
    "evil.test",
    "evil.test:8000",
    "localhost.evil.test",
    "127.0.0.1.evil.test",
    "192.0.2.1:8000",
    "[2001:db8::1]",
    "",
]


async def status(app: FastAPI, host: str, **headers: str) -> int:
    async with calling(app) as client:
        answer = await client.get("/v1/models", headers={"host": host, **headers})
        if answer.status_code != 200:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
            assert answer.headers["x-request-id"]
        return answer.status_code


async def test_without_keys_only_loopback_hosts_are_served(app: FastAPI) -> None:
    for host in LOOPBACK:
        assert await status(app, host) == 200, host
    for host in OTHERS:
        assert await status(app, host) == 403, host
    async with administering(app) as client:
        assert (await client.get("/metrics")).status_code == 200
        refused = await client.get("/metrics", headers={"host": "evil.test"})
        assert (refused.status_code, refused.json()["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    ("given", "answered", "refused"),
    [
        (
            {"allowed_hosts": "gpu.lan, *.Mill.test"},
            ["gpu.lan:80", "a.mill.test", "localhost"],
            ["mill.test", "x.lan"],
        ),
        ({"allowed_hosts": "*"}, OTHERS, []),
        ({"insecure": True, "host": "box.lan"}, ["box.lan", "192.0.2.1:8000", "[2001:db8::1]"], ["evil.test"]),
    ],
)
async def test_allowed_hosts_adds_names(
    settings: Settings, backend: Backend, given: dict[str, Any], answered: list[str], refused: list[str]
) -> None:
    app = create_app(settings.model_copy(update=given), backend)
    assert [await status(app, host) for host in answered] == [200 for _ in answered]
    assert [await status(app, host) for host in refused] == [403 for _ in refused]
    await app.state.context.close()


async def test_with_keys_hosts_are_checked_only_if_set(settings: Settings, backend: Backend) -> None:
    for names, expected in (("", 401), ("api.test", 403)):
        app = create_app(settings.model_copy(update={"auth": True, "allowed_hosts": names}), backend)
        async with calling(app) as client:
            for host, told in (("evil.test", expected), ("api.test", 401), ("192.0.2.1", 401)):
                assert (await client.get("/v1/models", headers={"host": host})).status_code == told
        await app.state.context.close()


async def test_forms_of_other_sites_are_refused(settings: Settings, backend: Backend) -> None:
    upload: Any = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", b"{}\n")}}
    text: Any = {"content": b'{"model": "scripted", "messages": []}', "headers": {"content-type": "text/plain"}}
    for origins, expected in (("", 403), ("https://a.test, https://app.test", 200), ("*", 200)):
        app = create_app(settings.model_copy(update={"cors_origins": origins}), backend)
        async with calling(app) as client:
            client.headers["origin"] = "https://app.test"
            assert (await client.post("/v1/files", **upload)).status_code == expected
            sent = await client.post("/v1/chat/completions", **text)
            assert sent.status_code == (415 if expected == 200 else 403)
            assert (await client.get("/v1/models")).status_code == 200
            for own in ("http://localhost", "https://localhost"):
                assert (await client.post("/v1/files", **upload, headers={"origin": own})).status_code == 200
            for other in ("null", "http://localhost:1", "http://localhost.evil.test", "http://["):
                told = await client.post("/v1/files", **upload, headers={"origin": other})
                assert told.status_code == (200 if origins == "*" else 403)
        await app.state.context.close()


async def test_hosts_are_checked_over_a_socket(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with serving(settings, backend) as url, httpx.AsyncClient(timeout=LIMIT_S) as client:
        refused = await client.post(f"{url}/v1/chat/completions", json=chat(), headers={"host": "evil.test"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
        assert (await client.get(f"{url}/live")).status_code == 200
