"""Marked texts through Kafka, valid and invalid, with debug logs: no process writes one anywhere."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.kafka import topics
from shared.kafka.message import Outgoing
from shared.runtime.sockets import free_ports
from shared.settings import Settings
from tests.support.kafka_bench import Bench
from tests.support.kafka_mock import environment
from tests.support.node import Node
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow

TEXT = "canary-93ac-prompt"
HOST = "127.0.0.1"


@asynccontextmanager
async def processes(settings: Settings, folder: Path) -> AsyncIterator[dict[str, int]]:
    """Run an API that enqueues into Kafka and a worker that reads from it, and yield their ports by purpose."""
    ports = dict(zip(("port", "admin_port", "metrics_port"), free_ports(HOST, 3), strict=True))
    names = ("model", "lease", "served_model_name", "data_dir")
    given = {name: getattr(settings, name) for name in names} | {"redis_url": settings.redis_url.get_secret_value()}
    given |= {"queue": "kafka", "log_level": "debug", "log_format": "json", **ports}
    own = {f"HEADRACE_{name.upper()}": str(value) for name, value in given.items()}
    own |= environment(settings.kafka_bootstrap)
    nodes = [
        Node(role, sys.executable, [role], own, ready, folder / f"{role}.log")
        for role, ready in (("api", "listening"), ("worker", "worker_ready"))
    ]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        yield ports
    finally:
        for node in nodes:
            if node.running:
                node.kill()


def records(bench: Bench) -> tuple[list[Outgoing], list[Outgoing]]:
    """Return valid requests and invalid records, each with the text."""
    topic = topics.requests(bench.model)
    good = [bench.ask(TEXT, event_id="good"), bench.ask(TEXT, event_id="stopped", stop=[TEXT])]
    wrong: list[Any] = [
        {"model": bench.model, "prompt": TEXT, "temperature": TEXT},
        {"model": bench.model, "prompt": TEXT, "temperature": -1},
        {"model": bench.model, "messages": [{"role": TEXT, "content": TEXT}]},
        {"model": bench.model, "prompt": TEXT, "response_format": {"type": TEXT}},
        [TEXT],
    ]
    values = [b'{"prompt": "' + TEXT.encode(), *(json.dumps(each).encode() for each in wrong)]
    return good, [Outgoing(topic, secrets.token_bytes(4), value) for value in values]


async def by_http(http: httpx.AsyncClient, model: str) -> None:
    messages = [{"role": "user", "content": TEXT}]
    asked = {"model": model, "messages": messages, "max_tokens": 3}
    answer = await http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    streamed = await http.post("/v1/chat/completions", json={**asked, "stream": True})
    assert b"[DONE]" in streamed.content
    refused = await http.post("/v1/chat/completions", json={**asked, "temperature": TEXT})
    assert refused.status_code == 400
    assert TEXT not in refused.text
    job = (await http.post("/v1/jobs", json={**asked, "max_tokens": 4000})).json()["id"]
    await http.delete(f"/v1/jobs/{job}")


async def test_no_process_reveals_text_from_kafka(bench: Bench, settings: Settings, tmp_path: Path) -> None:
    """Given marked prompts through topics and through the API's queue in Kafka, they are in no log, metric or
    refusal.
    """
    good, bad = records(bench)
    async with processes(settings, tmp_path) as ports:
        await bench.asend(*good, *bad)
        assert len(await bench.results_by_event(len(good))) == len(good)
        letters = await bench.letters(len(bad))
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{ports['port']}", timeout=LIMIT_S) as http:
            await by_http(http, bench.model)
            shown = [
                (await http.get(f"http://{HOST}:{ports[name]}/metrics")).text
                for name in ("admin_port", "metrics_port")
            ]
    assert "headrace_kafka_dead_letters" in shown[1]
    logs = [file.read_text() for file in tmp_path.glob("*.log")]
    assert all('"event"' in log for log in logs) and len(logs) == 2
    reasons = [str(letter.header("headrace-error-message")) for letter in letters]
    assert len(reasons) == len(bad)
    assert not [each for each in (*shown, *logs, *reasons) if TEXT in each]
