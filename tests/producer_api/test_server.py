"""The front end as a process, its monitoring, and the playground."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys

import httpx
import psutil
import pytest
from fastapi import FastAPI

from producer_api.routes.pages import FILES
from producer_api.server import listen, serve
from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from shared.models.worker_registry import WorkerExit
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings
from tests.support.api_process import MIB, running
from tests.support.api_server import administering, chat
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S


@pytest.fixture(autouse=True)
def unconfigured_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` in this process must not set up the logs of all other tests."""
    monkeypatch.setattr("producer_api.server.configure_logging", lambda settings, process: None)


@pytest.mark.slow
def test_an_idle_process_is_small_and_exits_0_on_sigterm(valkey: EmbeddedServer) -> None:
    with running(valkey) as (process, url):
        for path in ("/live", "/openapi.json", "/"):
            assert httpx.get(url + path).status_code == 200
        assert psutil.Process(process.pid).memory_info().rss < 150 * MIB
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LIMIT_S) == 0


@pytest.mark.slow
def test_logs_contain_no_prompt(valkey: EmbeddedServer) -> None:
    canary = "canary-71c"
    messages = [{"role": "user", "content": canary}]
    with running(valkey) as (process, url), httpx.Client(base_url=url, timeout=LIMIT_S) as http:
        assert http.post("/v1/jobs", json={"model": MODEL, "messages": messages}).status_code == 202
        assert http.post("/v1/jobs", json={"model": MODEL, "messages": messages, "seed": canary}).status_code == 400
        assert (
            http.post("/v1/chat/completions", content=canary, headers={"x-request-id": "mine"}).status_code == 415
        )
        process.send_signal(signal.SIGTERM)
        told = process.stderr.read()
    assert '"http_request_id": "mine"' in told
    assert canary not in told


def test_tracebacks_on_the_console_have_no_locals() -> None:
    code = """
import structlog
from shared.settings import Settings
from shared.runtime.logging import configure_logging
configure_logging(Settings(log_format="console"), process="api")
def fail(prompt):
    raise ZeroDivisionError
try:
    fail("canary" + "-71c")
except ZeroDivisionError:
    structlog.get_logger().exception("failed")
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert "ZeroDivisionError" in told.stderr
    assert "canary-71c" not in told.stderr


@pytest.mark.parametrize("name", ["port", "admin_port", "grpc_port"])
def test_a_port_in_use_names_the_setting(settings: Settings, name: str) -> None:
    with listen(settings) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)) as caught:
            serve(settings.model_copy(update={name: port}))
    assert caught.value.param == name


def test_a_wrong_host_names_the_setting(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        serve(settings.model_copy(update={"host": "192.0.2.1"}))


def test_redis_down_at_the_start_is_one_clear_error(settings: Settings) -> None:
    nowhere = type(settings.redis_url)("redis://127.0.0.1:1/0")
    with pytest.raises(Unavailable, match="Redis cannot be reached"):
        serve(settings.model_copy(update={"redis_url": nowhere}))


async def test_readiness_follows_the_workers(
    client: httpx.AsyncClient, settings: Settings, backend: Backend
) -> None:
    from producer_api.app import create_app

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(settings, backend))  # its own cache
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get("/ready")

    assert (await ask()).json()["ready"] is True
    await backend.redis.flushall()
    response = await ask()
    assert (response.status_code, response.json()["reason"]) == (503, f"no worker serves {MODEL}")
    await ScriptedWorker(backend).announce("loading", 0.4)
    response = await ask()
    assert (response.status_code, response.json()["progress"]) == (503, 0.4)


@pytest.mark.parametrize(
    ("status", "pause", "told"),
    [
        (1, 900, r"exited with code 1 1\d\d s ago, restart in [78]\d\d s"),
        (-9, 0, r"was killed by signal 9 1\d\d s ago, restarting now"),
    ],
)
async def test_readiness_reports_the_last_workers_exit(
    app: FastAPI, backend: Backend, status: int, pause: float, told: str
) -> None:
    await backend.redis.flushall()
    at = await backend.token_log.now() - 100
    await backend.registry.note_exit(MODEL, WorkerExit(status=status, at=at, restart_at=at + pause))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        response = await http.get("/ready")
    assert response.status_code == 503
    assert re.fullmatch(f"no worker serves {MODEL}; the last one {told}", response.json()["reason"])


async def test_a_job_for_the_configured_model_queues_without_a_worker(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    await backend.redis.flushall()
    assert (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).status_code == 202


async def test_metrics_count_answered_and_waiting_requests(
    app: FastAPI, client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    asked = asyncio.create_task(client.post("/v1/chat/completions", json=chat()))
    await worker.answer("a", "b", "c")
    await asked
    await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})
    async with administering(app) as admin:
        text = (await admin.get("/metrics")).text
    for line in (
        f'headrace_api_requests_total{{class="interactive",model="{MODEL}",outcome="ok",'
        'route="/v1/chat/completions"} 1.0',
        f'headrace_api_tokens_total{{class="interactive",kind="prompt",model="{MODEL}"}} 5.0',
        f'headrace_api_tokens_total{{class="interactive",kind="completion",model="{MODEL}"}} 3.0',
        f'headrace_api_time_to_first_token_seconds_count{{class="interactive",model="{MODEL}"}} 1.0',
        f'headrace_api_inter_token_seconds_count{{class="interactive",model="{MODEL}"}} 2.0',
        f'headrace_queue_waiting{{model="{MODEL}"}} 1.0',
        "headrace_api_open_streams 0.0",
        "headrace_api_redis_up 1.0",
    ):
        assert line in text


async def test_the_playground_loads_from_this_server_alone(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    script = (await client.get("/web/app.js")).text
    for path in ("/web/app.js", "/web/answer.js", "/web/app.css", "/favicon.ico"):
        assert f'"{path}"' in page.text + script
        assert (await client.get(path)).status_code == 200
    assert "http://" not in page.text + (await client.get("/web/app.js")).text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_a_304_has_the_headers_of_its_200(client: httpx.AsyncClient, path: str, form: str) -> None:
    """A browser replaces the headers that it cached by those of the 304, its policy too."""
    found = await client.get(path)
    again = await client.get(path, headers={"if-none-match": form.format(found.headers["etag"])})
    assert (found.status_code, again.status_code, again.content) == (200, 304, b"")
    own = {"content-length", "x-request-id"}  # of the 200's body, and of each exchange
    assert [each for each in again.headers.multi_items() if each[0] not in own] == [
        each for each in found.headers.multi_items() if each[0] not in own
    ]
    changed = await client.get(path, headers={"if-none-match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.slow
def test_an_unread_stderr_does_not_block_the_server(valkey: EmbeddedServer) -> None:
    with running(valkey, log_level="debug") as (process, url), httpx.Client(base_url=url, timeout=LIMIT_S) as http:
        for _ in range(400):  # of more than 200 bytes each; a pipe holds 64 KiB
            assert http.get("/live", timeout=5).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LIMIT_S) == 0


def test_importing_the_front_end_imports_no_engine() -> None:
    """Nor does it import what only some settings need, nor the tasks process the web framework."""
    code = (
        "import sys, producer_api.batch_runner.process; print('fastapi' in sys.modules);"
        "import producer_api.server, producer_api.app;"
        "heavy = ('torch', 'transformers', 'tokenizers', 'numpy', 'workers', 'headrace');"
        "chosen = ('jwt', 'sqlalchemy.dialects.postgresql');"
        "print([name for name in heavy + chosen if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert found.stdout.split() == ["False", "[]"]
