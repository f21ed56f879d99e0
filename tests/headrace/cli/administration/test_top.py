"""`headrace top` and `headrace queues`, against an admin port, and the view at several sizes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO

import pytest
from click.testing import Result
from rich.console import Console

from headrace.cli.administration.top import view_of
from headrace.cli.main import app as command_line
from producer_api.app import create_app
from producer_api.server import AdminServer, bind
from shared.backend import Backend
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request, submit
from tests.support.scripted_worker import ScriptedWorker
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S


@asynccontextmanager
async def administered(settings: Settings, backend: Backend) -> AsyncIterator[str]:
    """Run an admin port with one worker and one waiting request, and yield its address."""
    await ScriptedWorker(backend).announce()
    await submit(backend, make_request(tenant="a/b"))
    app = create_app(settings, backend)
    with bind(settings.model_copy(update={"admin_port": 0}), "admin_host", "admin_port") as listener:
        server = AdminServer(app.state.context)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving
    await app.state.context.close()


@pytest.fixture
async def url(settings: Settings, backend: Backend) -> AsyncIterator[str]:
    async with administered(settings, backend) as address:
        yield address


async def run(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, command_line, arguments)


def lines_of(result: Result) -> list[str]:
    """Return the lines that a command printed, after those that the server of this process logged."""
    return result.stdout.splitlines()


async def test_top_prints_one_view_or_json(url: str) -> None:
    once = await run("top", "--once", "--url", url)
    assert (once.exit_code, "1 of 1 workers ready  1 waiting" in once.stdout) == (0, True)
    found = json.loads(lines_of(await run("top", "--json", "--url", url))[-1])
    assert [each["model"] for each in found["queues"]] == [MODEL]


async def test_queues_are_paused_drained_and_resumed(url: str, backend: Backend) -> None:
    for command, state in (("pause", "paused"), ("drain", "draining"), ("resume", "open")):
        done = await run("queues", command, MODEL, "--url", url)
        assert (done.exit_code, lines_of(done)[-1]) == (0, f"{MODEL}: {state}")
        assert (await backend.queues.survey(MODEL, 8)).gate == state
    done = await run("queues", "pause", MODEL, "--tenant", "a/b", "--url", url)
    assert lines_of(done)[-1] == f"{MODEL}, tenant a/b: paused"
    rows = lines_of(await run("queues", "list", "--url", url))
    assert rows[-1].split()[:3] == ["a/b", "paused", "1"]
    assert (await run("queues", "pause", "no-such", "--url", url)).exit_code == 1


@pytest.mark.parametrize("tenant", ["..", "a/../..", "", "a\udcff"])
async def test_a_tenants_name_leads_to_no_other_queue(url: str, backend: Backend, tenant: str) -> None:
    """A client that resolves `..` in a path would pause the whole model."""
    assert (await run("queues", "pause", MODEL, "--tenant", tenant, "--url", url)).exit_code == 1
    survey = await backend.queues.survey(MODEL, 8)
    assert {survey.gate, *(each.gate for each in survey.tenants)} == {"open"}


def overview(count: int) -> dict[str, object]:
    lane = {"waiting": 9, "held": 1, "oldest_age": 3.5, "share": 0.25, "weight_share": 1.0, "state": "paused"}
    classes = [{"priority": name, **lane} for name in ("interactive", "standard", "batch")]
    tenants = [{"tenant": f"[bold]tenant-{i}", **lane} for i in range(count)]
    queue = {"classes": classes, "tenants": tenants}
    model = {"asleep": False, "ready": 1, "workers": 2, "task": "generate"}
    worker = {"state": "ready", "active_requests": 3, "seats": 8, "kv_use": None, "tokens_per_s": 9.6, "fault": ""}
    request = {"model": "org/model", "tenant": "a", "finish": "", "state": "queued", "created_at": 5.0}
    request |= {"prompt_tokens": 5, "completion_tokens": 7, "priority": "batch"}
    numbers = range(count)
    return {
        "at": 10.0,
        "models": [{"name": f"org/model-{i}", **model} for i in numbers],
        "queues": [{"model": f"org/model-{i}", **lane, **queue} for i in numbers],
        "workers": [{"id": f"w{i}", "model": "org/model", "heartbeat_age": 1.0, **worker} for i in numbers],
        "recent": [{"id": f"[u]{i}[/none]" + "0" * 29, **request} for i in numbers],
    }


@pytest.mark.parametrize("count", [0, 1, 30])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 8)])
def test_the_view_fits_the_terminal(width: int, height: int, count: int) -> None:
    console = Console(file=StringIO(), width=width, height=height)
    console.print(view_of(overview(count), width, height))
    text = console.file.getvalue()
    assert len(text.splitlines()) <= max(height, 12)
    assert max(map(len, text.splitlines())) <= width
    if count and height >= 24:
        assert "[bold]tenant-0" in text  # names are not markup, and neither are ids


@pytest.mark.slow
async def test_top_survives_the_servers_death(settings: Settings, backend: Backend) -> None:
    """Given a terminal, expect the reason on the screen once the server is gone, and an exit on q."""
    parent, child = pty.openpty()
    seen = bytearray()

    def read_until(text: bytes) -> None:
        until = time.monotonic() + LIMIT_S
        while text not in seen:
            assert time.monotonic() < until
            seen.extend(os.read(parent, 65536))

    async with administered(settings, backend) as url:
        command = [sys.executable, "-m", "headrace", "top", "--url", url, "--interval", "0.2"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
        process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
        os.close(child)
        await asyncio.to_thread(read_until, b"workers ready")
    try:
        await asyncio.to_thread(read_until, b"trying again every 0.2 s")
        os.write(parent, b"\x1b[B")  # an arrow does not quit
        for _ in range(2):
            seen.clear()
            await asyncio.to_thread(read_until, b"trying again every 0.2 s")
        os.write(parent, b"xq")
        assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
        assert b"Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(parent)
