"""Command line over Kafka: batch files, also through kills, single requests, and results."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.batch_command import chats, results, write
from tests.support.kafka_bench import Bench
from tests.support.kafka_mock import environment, headrace
from tests.support.waiting import LIMIT_S


@pytest.fixture
def bench(settings: Settings, backend: Backend) -> Iterator[Bench]:
    made = Bench(settings, backend)
    yield made
    made.close()


def start(bench: Bench, *arguments: str) -> subprocess.Popen[str]:
    own = {"HEADRACE_SERVED_MODEL_NAME": bench.model, "HEADRACE_MODEL": "scripted"}
    given = {**os.environ, **own, **environment(bench.settings.kafka_bootstrap)}
    command = headrace(*arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given)


async def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, err = await asyncio.to_thread(process.communicate, timeout=LIMIT_S)
    assert process.returncode == status, err
    assert "Traceback" not in err
    return out, err


async def done(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def lines(bench: Bench, count: int, pace: int = 0) -> list[dict[str, Any]]:
    found = chats(count, pace)
    for line in found:
        line["body"]["model"] = bench.model
    return found


@pytest.mark.slow
async def test_a_file_run_outlives_two_kills(bench: Bench, tmp_path: Path) -> None:
    """Given a run that is killed, stopped and resumed, each line has one run and one result."""
    source, out = write(tmp_path / "in.jsonl", lines(bench, 60, pace=10)), tmp_path / "out.jsonl"
    run = ["batch", "run", str(source), "--out", str(out), "--kafka", bench.settings.kafka_bootstrap, "--json"]
    async with bench.worker():
        process = start(bench, *run, "--concurrency", "12")
        await done(process, out, 10)
        process.kill()
        await ended(process, -signal.SIGKILL)
        process = start(bench, *run, "--concurrency", "12")
        await done(process, out, 30)
        process.send_signal(signal.SIGINT)
        await ended(process, 130)
        summary = json.loads((await ended(start(bench, *run)))[0])
    found = results(out)
    assert (summary["done"], summary["failed"]) == (60, 0)
    assert sorted(each["custom_id"] for each in found) == sorted(f"c{i}" for i in range(60))
    assert all(each["response"]["body"]["object"] == "chat.completion" for each in found)
    assert len({each["response"]["request_id"] for each in found}) == 60
    assert await bench.backend.redis.keys("hr:{req_*}:log")
    assert len(await bench.backend.redis.keys("hr:{req_*}:log")) == 60, "a line was run twice"


@pytest.mark.slow
async def test_every_kind_of_line_has_its_answer(bench: Bench, tmp_path: Path) -> None:
    """Given lines of every kind, some of them wrong, the answers are those of the HTTP API."""
    chat, *_ = lines(bench, 1)
    chat["body"] |= {"max_completion_tokens": 2, "max_tokens": 2, "seed": 3}
    source = write(
        tmp_path / "in.jsonl",
        [
            chat,
            {"custom_id": "job", "prompt": "a", "max_tokens": 2},
            {"custom_id": "field", "prompt": "a", "temprature": 1},
            {"custom_id": "range", "prompt": "a", "temperature": -1},
            {"custom_id": "large", "prompt": "a" * 5_000_000},
            "{\n",
        ],
    )
    out = tmp_path / "out.jsonl"
    async with bench.worker():
        run = ["batch", "run", str(source), "--out", str(out), "--kafka", bench.settings.kafka_bootstrap]
        await ended(start(bench, *run, "--ordered"))
        _, err = await ended(start(bench, *run))
    assert "6 of 6 lines done: 3 failed" in err
    found = results(out)
    assert found[0]["response"]["body"]["usage"]["completion_tokens"] == 2
    assert found[1]["response"]["body"]["state"] == "completed"
    assert [each["response"]["status_code"] for each in found[:5]] == [200, 200, 200, 400, 413]
    assert found[3]["response"]["body"]["error"]["code"] == "invalid_request", (
        "the worker's error, from a dead letter"
    )
    assert found[5]["error"]["code"] == "malformed_body"


@pytest.mark.slow
async def test_submit_and_tail(bench: Bench, tmp_path: Path) -> None:
    """Given one request and a file with a bad line, their results are found by the printed ids."""
    name = f"n{bench.model}"
    async with bench.worker():
        out, _ = await ended(start(bench, "kafka", "submit", "hello", "--max-tokens", "2", "--json"))
        single = json.loads(out)["id"]
        file = write(tmp_path / "in.jsonl", ['"a"\n', "{\n", {"prompt": "b"}])
        given = ["kafka", "submit", "--file", str(file), "--max-tokens", "3", "--id", name]
        out, err = await ended(start(bench, *given), 1)
        assert out.split() == [f"{name}-1", f"{name}-3"]
        assert "line 2: the line is not valid JSON" in err
        await ended(start(bench, *given), 1)  # submitted twice, run once
        wanted = [option for each in (single, f"{name}-1", f"{name}-3") for option in ("--id", each)]
        out, _ = await ended(start(bench, "kafka", "tail", "--json", *wanted))
        jobs = {each["id"]: each["job"] for each in map(json.loads, out.splitlines())}
        assert set(jobs) == {single, f"{name}-1", f"{name}-3"}
        assert jobs[single]["usage"]["completion_tokens"] == 2
        assert jobs[f"{name}-3"]["state"] == "completed"
        out, _ = await ended(start(bench, "kafka", "tail"))
    shown = [line.split()[0] for line in out.splitlines()]
    assert [shown.count(each) for each in jobs] == [1, 1, 1]
    assert "set --bootstrap" in (await ended(start(bench, "kafka", "submit", "x", "--bootstrap", ""), 2))[1]
