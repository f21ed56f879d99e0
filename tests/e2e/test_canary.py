"""Marked texts through every API, valid and invalid, with debug logs: no process writes one anywhere."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.launched_server import Launched, new_key
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow

TEXT = "canary-4f1c-prompt"
PEPPER = "canary-4f1c-pepper-of-32-characters"
SECRET = base64.b64encode(b"canary-4f1c-webhooks-secret-of-32").decode()
MODEL = "scripted"
BAD = '{"messages": [{"role": "user", "content": "' + TEXT


class Receiver(http.server.BaseHTTPRequestHandler):
    """Handler that refuses each webhook with a text that must not be logged."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(500, TEXT)
        self.end_headers()
        self.wfile.write(TEXT.encode())
        self.server.called.set()  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    server.called = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launched]:
    for name, value in {
        "auth": "true",
        "key_pepper": PEPPER,
        "webhook_secrets": f"whsec_{SECRET}",
        "webhook_allow_http": "true",
        "webhook_allow_private": "true",
        "log_level": "debug",
    }.items():
        monkeypatch.setenv(f"HEADRACE_{name}".upper(), value)
    launched = Launched(tmp_path / "data", "--model", MODEL)
    try:
        launched.await_line("^ready: ")
        yield launched
    finally:
        launched.stop()


def send_valid(http: httpx.Client, webhook: str) -> None:
    """Send chats, completions, jobs, responses, tokenizations and a batch, each with the text."""
    messages = [{"role": "user", "content": TEXT}]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 3}
    job = {"model": MODEL, "prompt": TEXT, "max_tokens": 3, "webhook": {"url": webhook}}
    for path, body in (
        ("/v1/chat/completions", asked),
        ("/v1/chat/completions", {**asked, "stream": True, "stop": TEXT}),
        ("/v1/completions", {"model": MODEL, "prompt": TEXT, "max_tokens": 3, "echo": True}),
        ("/v1/responses", {"model": MODEL, "input": TEXT, "instructions": TEXT, "max_output_tokens": 3}),
        ("/tokenize", {"model": MODEL, "prompt": TEXT}),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == 200, answer.text
    answer = http.post("/v1/jobs", json=job, headers={"idempotency-key": TEXT})
    assert answer.status_code == 202, answer.text
    http.get(f"/v1/jobs/{answer.json()['id']}/events")
    cancelled = http.post("/v1/jobs", json={**job, "max_tokens": 4000}).json()["id"]
    http.delete(f"/v1/jobs/{cancelled}")
    line = {"custom_id": TEXT, "method": "POST", "url": "/v1/chat/completions"}
    lines = [{**line, "body": asked}, {**line, "custom_id": "x", "body": {**asked, "temperature": TEXT}}]
    batch = begin(http, lines)
    deadline = time.monotonic() + LIMIT_S
    while (found := http.get(f"/v1/batches/{batch}").json())["status"] != "completed":
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    begin(http, [line])


def begin(http: httpx.Client, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines))
    file = http.post("/v1/files", files={"file": (f"{TEXT}.jsonl", content)}, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    found: str = http.post("/v1/batches", json=body).json()["id"]
    return found


def send_invalid(http: httpx.Client) -> None:
    """Send requests that are refused; no refusal contains the text."""
    messages = [{"role": "user", "content": TEXT}]
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/jobs",
        "/v1/responses",
        "/v1/batches",
        "/tokenize",
    ):
        for content in (BAD, json.dumps(TEXT), f"[{json.dumps(TEXT)}]", json.dumps({"messages": TEXT})):
            answer = http.post(path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (path, answer.text)
            assert TEXT not in answer.text, path
    for body in (
        {"messages": [{"role": TEXT, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": TEXT}]}]},
        {"messages": messages, "temperature": TEXT},
        {"messages": messages, "temperature": -1},
        {"messages": messages, "stop": [TEXT * 100]},
        {"messages": messages, "max_tokens": 2**63},
        {"messages": [{"role": "user", "content": TEXT * 2000}]},
        {"messages": messages, "tools": TEXT},
        {"messages": messages, "response_format": {"type": TEXT}},
    ):
        answer = http.post("/v1/chat/completions", json={"model": MODEL, **body})
        assert answer.status_code == 400, answer.text
        assert TEXT not in answer.text, body
    http.post("/v1/chat/completions", content=TEXT)
    http.post("/v1/files", files={"file": ("x", TEXT)}, data={"purpose": TEXT})


def output_of(up: Launched, http: httpx.Client, folder: Path, admin: str) -> str:
    """Return all logs, output lines and metrics, and the command lines of the processes."""
    up.await_line("^metrics: ")
    [url] = [line.split()[1] for line in up.lines if line.startswith("metrics: ")]
    answer = httpx.get(url, headers={"authorization": f"Bearer {admin}"})
    assert "headrace_api_requests" in answer.text
    logs = [file.read_text(errors="replace") for file in folder.rglob("*.log*")]
    assert sum('"status"' in log or "status=" in log for log in logs) > 0, "the requests are logged"
    family = [psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children(recursive=True)]
    commands = [" ".join(process.cmdline()) for process in family]
    return "\n".join([answer.text, *logs, *up.lines, *commands])


def test_no_process_reveals_prompts_or_secrets(
    up: Launched, receiver: http.server.HTTPServer, tmp_path: Path
) -> None:
    """Given marked prompts, keys, pepper and webhook secrets, they are in no log, metric, refusal or command."""
    folder = tmp_path / "data"
    key, admin = new_key(folder), new_key(folder, "--admin")
    secret = key.rsplit("_", 1)[1]
    wrong = f"hr_{'0' * 12}_{'c' * 64}"
    with httpx.Client(base_url=up.url, headers={"authorization": f"Bearer {key}"}, timeout=LIMIT_S) as http:
        send_valid(http, f"http://127.0.0.1:{receiver.server_port}/hook?{TEXT}")
        send_invalid(http)
        assert receiver.called.wait(LIMIT_S)  # type: ignore[attr-defined]
        for given in (f"Bearer {wrong}", f"Basic {secret}", f"Bearer {key}x", f"Bearer {key} {key}"):
            answer = http.get("/v1/models", headers={"authorization": given})
            assert answer.status_code == 401
            assert secret not in answer.text
        http.get(f"/v1/models?key={secret}")
        output = output_of(up, http, folder, admin)
    redis = (folder / "valkey" / "password").read_text()
    marks = [TEXT, PEPPER, SECRET, secret, admin.rsplit("_", 1)[1], "c" * 64, redis]
    assert {mark for mark in marks if mark in output} == set()
