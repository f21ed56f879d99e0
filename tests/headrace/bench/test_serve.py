"""`headrace bench serve` as a command."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from rich.console import Console

from headrace.bench.gateway.serve import measure
from headrace.bench.harness.load import Load
from headrace.cli.bench import app
from shared.errors import ConfigError, HeadraceError
from tests.support.fake_openai_server import FakeServer, answer, sending, work
from tests.support.typer_internals import CliRunner, Result
from tests.support.waiting import LIMIT_S


async def call(server: FakeServer, *options: str) -> Result:
    """Run the command in a thread, while the server answers in this loop."""
    return await asyncio.to_thread(CliRunner().invoke, app, ["serve", "--url", server.url, *options])


async def test_stdout_has_only_json(server):
    """Given eight requests and --json, stdout is one JSON object, without the warm-up."""
    result = await call(server, "--requests", "8", "--warmup", "3", "--json")

    found = json.loads(result.stdout)
    assert (result.exit_code, found["requests"], found["output_tokens"], found["errors"]) == (0, 8, 16, {})
    assert len(server.bodies) == 11


async def test_no_prompt_is_shown(server):
    """Given the table and JSON, neither has a prompt."""
    results = [await call(server, "--requests", "4", *options) for options in ([], ["--json"])]

    prompts = [str(body["messages"][0]["content"]) for body in server.bodies]
    assert all(" ".join(prompt.split()[:3]) not in result.output for prompt in prompts for result in results)


async def test_the_measured_prompts_are_new_to_the_server(server):
    """Given a warm-up, none of its prompts is measured, and the work is the same for the same seed."""
    await call(server, "--requests", "4", "--warmup", "2", "--concurrency", "1", "--seed", "5")
    await call(server, "--requests", "4", "--warmup", "0", "--concurrency", "1", "--seed", "5")

    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert prompts[2:6] == prompts[6:]
    assert not set(prompts[:2]) & set(prompts[2:])


async def test_failed_requests_fail_the_command(server):
    """Given a server that refuses, the figures are shown first, then an error."""
    server.respond = sending(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")

    result = await call(server, "--requests", "3", "--json")

    assert json.loads(result.stdout)["errors"] == {"HTTP 503": 3}
    assert isinstance(result.exception, HeadraceError)


async def test_an_invalid_length_is_a_config_error(server):
    """Given an invalid length, a ConfigError is raised, and nothing is sent."""
    result = await call(server, "--outputs", "many")

    assert isinstance(result.exception, ConfigError)
    assert server.bodies == []


async def test_an_interrupted_run_reports_its_results(server):
    """Given a server that answers two requests and not the third,
    If the run is stopped there,
    the report has two requests and is marked as interrupted.
    """
    third = asyncio.Event()

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        if number < 2:
            await answer(number, writer)
        else:
            third.set()
            await asyncio.Event().wait()

    server.respond = respond
    running = asyncio.create_task(
        measure(server.target(), work(5), Load(concurrency=1), Console(file=io.StringIO()))
    )
    await asyncio.wait_for(third.wait(), LIMIT_S)
    running.cancel()
    report = await running

    assert (report.requests, report.output_tokens, report.errors, report.interrupted) == (2, 4, {}, True)


@pytest.mark.parametrize("terminal", [True, False])
async def test_only_a_terminal_shows_progress(server, terminal):
    """Given a terminal or a pipe, only the terminal shows a progress bar."""
    shown = io.StringIO()
    await measure(server.target(), work(3), Load(1), Console(file=shown, force_terminal=terminal, width=100))

    assert ("3/3" in shown.getvalue()) is terminal
