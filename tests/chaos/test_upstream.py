"""Chaos cases of an upstream server: it and its workers die while it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.scale import Scale
from tests.support.cluster import running
from tests.support.fake_upstream import MODEL, serving
from tests.support.stream_client import Answer, Client, until

pytestmark = pytest.mark.slow

STREAMS = 8


@pytest.mark.case("upstream-kill", "upstream server and its worker kill -9 in turns, 8 streams")
async def test_answers_outlive_worker_and_upstream_server(
    scale: Scale, figures: dict[str, Any], tmp_path: Path
) -> None:
    """Given running answers, if the server or the worker is lost, each goes on without a gap or a repeat."""
    kills, tokens = scale(2, 20), scale(30, 120)
    with serving() as server:
        settings = {"runtime": "upstream", "upstream_url": server.url, "upstream_model": MODEL}
        settings |= {"lease": scale.lease, "max_attempts": 100}
        async with running(tmp_path, apis=1, workers=1, **settings) as cluster:
            client, [worker] = Client(cluster.urls, MODEL), cluster.workers
            for kill in range(kills):
                prompts = [f"[pace 30] kill {kill} of {number}" for number in range(STREAMS)]
                answers: list[Answer] = [await client.submit(prompt, tokens, temperature=0.0) for prompt in prompts]
                following = [asyncio.create_task(client.follow(answer)) for answer in answers]
                await until(lambda running=answers: min(a.seq for a in running) >= 3, "all run")  # type: ignore[misc]
                if kill % 2:
                    worker.kill()
                    await worker.start()
                else:
                    server.hang_up()
                    server.listen()
                await asyncio.gather(*following)
                for answer, prompt in zip(answers, prompts, strict=True):
                    assert answer.end == "done", answer.data
                    assert answer.texts == [server.text(prompt, tokens)]
                    assert answer.data["usage"]["completion_tokens"] == tokens
    figures |= {"kills": kills, "answers": kills * STREAMS}
