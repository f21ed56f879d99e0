"""`headrace up --upstream`: no model on this machine, and a small worker."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.fake_upstream import MODEL, serving
from tests.support.launched_server import Launched
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow
MAX_WORKER_BYTES = 120 * 2**20  # torch alone takes 200 MiB


def test_an_upstream_server_is_served_under_its_models_name(tmp_path: Path) -> None:
    with serving() as server:
        up = Launched(tmp_path / "data", "--upstream", server.url, cache_dir=tmp_path / "cache")
        try:
            up.await_ready()
            up.await_line(rf"^upstream: {server.url}   model {MODEL}")
            worker = up.child("worker")
            assert worker.memory_info().rss < MAX_WORKER_BYTES
            assert not any("torch" in file.path for file in worker.memory_maps())
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answer = httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=LIMIT_S).json()
            assert answer["choices"][0]["message"]["content"] == server.text("hello", 4)
            assert not (tmp_path / "cache" / "models").exists()
        finally:
            up.stop()
