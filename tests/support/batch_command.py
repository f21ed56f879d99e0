"""`headrace batch run` as a process, and its input and output files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis

from headrace.cli.main import app
from shared.errors import ConfigError
from tests.support.cluster import Cluster
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S


class BatchRun:
    """`headrace batch run` as a process."""

    def __init__(self, url: str, source: Path, out: Path, *options: str) -> None:
        command = [sys.executable, "-m", "headrace", "batch", "run", str(source), "--out", str(out), "--url", url]
        self.out = out
        self.process = subprocess.Popen(
            [*command, "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HEADRACE_LOG_LEVEL": "warning"},
        )

    async def wait_for_lines(self, count: int) -> None:
        """Wait until the output has `count` lines."""
        deadline = time.monotonic() + LIMIT_S
        while not self.out.exists() or self.out.read_bytes().count(b"\n") < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    async def wait(self, status: int = 0) -> dict[str, Any]:
        """Wait for the end of the command, check its exit status, and return its summary."""
        out, err = await asyncio.to_thread(self.process.communicate, timeout=LIMIT_S)
        assert self.process.returncode == status, err
        assert "Traceback" not in err
        return json.loads(out) if out else {"error": err}


def refusal(url: str, source: Path, out: Path, *options: str) -> str:
    """Return the error of a run that is refused before it starts, in this process."""
    command = ["batch", "run", str(source), "--out", str(out), "--url", url, *options]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ConfigError), done
    return done.exception.message


def started_jobs(cluster: Cluster) -> set[str]:
    """Return the ids of all jobs that a worker began. A refused job has a state, but no log."""
    with redis.Redis.from_url(cluster.store.url) as store:
        return {key.decode() for key in store.scan_iter("hr:{req_*}:log", count=1000)}


def write(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def chats(count: int, pace: int = 0, tokens: int = 3) -> list[dict[str, Any]]:
    """Return OpenAI batch lines, each with a different chat and a token every `pace` ms."""
    return [
        {
            "custom_id": f"c{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "scripted",
                "messages": [{"role": "user", "content": f"{i} [pace {pace}]"}],
                "max_tokens": tokens,
            },
        }
        for i in range(count)
    ]


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]
