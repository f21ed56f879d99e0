"""`headrace up` with a model repository and nothing else: an ONNX model beside a chat model, both on demand."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.launched_server import Launched
from tests.support.onnx_models import place, scaled_sum
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow

CHAT = 'backend: "headrace" parameters { key: "model" value { string_value: "scripted" } }'
ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="module")
def repository_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    root = tmp_path_factory.mktemp("repository")
    place(scaled_sum(), root, "sum")
    (root / "sum" / "config.pbtxt").write_text("max_batch_size: 8", encoding="utf-8")
    (root / "chat").mkdir()
    (root / "chat" / "config.pbtxt").write_text(CHAT, encoding="utf-8")
    up = _launch(tmp_path_factory.mktemp("up"), root)
    try:
        up.await_ready()
        up.await_line("ready:")
        yield up
    finally:
        up.stop()


def _launch(data_dir: Path, root: Path) -> Launched:
    return Launched(
        data_dir, "--model-repository", str(root), model_control="explicit", load_on_demand=True, usage=False
    )


def infer(up: Launched) -> list[float]:
    tensor = {"shape": [1, 4], "datatype": "FP32", "data": ROWS}
    body = {"inputs": [{"name": "A", **tensor}, {"name": "B", **tensor}], "outputs": [{"name": "Y"}]}
    answer = httpx.post(f"{up.url}/v2/models/sum/infer", json=body, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    data: list[float] = answer.json()["outputs"][0]["data"]
    return data


def chat(up: Launched, **fields: Any) -> dict[str, Any]:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **fields}
    answer = httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_models_of_different_kinds_are_loaded_by_their_requests(repository_up: Launched) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tensors, text = pool.submit(infer, repository_up), pool.submit(chat, repository_up)
        assert tensors.result() == [2.0, 4.0, 6.0, 8.0]
        assert text.result()["usage"]["completion_tokens"] == 4
    deadline = time.monotonic() + LIMIT_S
    while _states(repository_up) != {"chat": "ready", "sum": "ready"}:
        assert time.monotonic() < deadline


def test_requests_survive_the_death_of_the_worker(repository_up: Launched) -> None:
    """Given a chat that the killed worker holds, and requests sent right after, the next worker answers all."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        held = pool.submit(
            chat, repository_up, messages=[{"role": "user", "content": "Hello [pace 5]"}], max_tokens=400
        )
        while not _active(repository_up):
            pass
        repository_up.kill("worker")
        sent = [pool.submit(infer, repository_up) for _ in range(3)]
        assert [each.result() for each in sent] == [[2.0, 4.0, 6.0, 8.0]] * 3
        assert held.result()["usage"]["completion_tokens"] == 400


def _states(up: Launched) -> dict[str, str]:
    models = httpx.get(f"{up.url}/v1/models", timeout=LIMIT_S).json()["data"]
    return {model["id"]: model["headrace"]["state"] for model in models}


def _active(up: Launched) -> int:
    workers = httpx.get(f"{up.url}/ready", timeout=LIMIT_S).json()["workers"]
    return sum(worker["active_requests"] for worker in workers)
