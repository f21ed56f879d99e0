"""Installation with API keys, as its users see it: launcher, command line and batches."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from headrace.cli.main import app
from headrace.client import HeadraceClient
from shared.errors import InvalidApiKey, Unauthenticated
from tests.support.launched_server import Launched, new_key
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow


def process(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `headrace` as a process."""
    command = [sys.executable, "-m", "headrace", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    launched = Launched(tmp_path_factory.mktemp("keys") / "data", "--model", "scripted", "--auth")
    try:
        launched.await_line("^ready: ")
        yield launched
    finally:
        launched.stop()


def test_a_public_address_requires_keys(tmp_path: Path) -> None:
    """Given a public address without keys, the launcher refuses to start and names the alternatives."""
    for words in (("up", "--model", "scripted", "--data-dir", str(tmp_path)), ("api",)):
        refused = process(*words, "--host", "0.0.0.0", "--port", "0")
        assert refused.returncode == 2
        assert "auth = true" in refused.stderr
        assert "insecure = true" in refused.stderr


def test_commands_send_the_key(up: Launched, tmp_path: Path) -> None:
    """Given a server with keys, it says so, and serves commands and clients only with a key."""
    up.await_line("authentication is on")
    key, at = new_key(up.data_dir), ("--url", up.url)

    def headrace(*words: str, **environ: str) -> str:
        done = CliRunner(env=environ).invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.stdout

    without = process("models", *at)
    assert without.returncode == 1
    assert "missing API key" in without.stderr
    assert headrace("models", *at, "--api-key", key).split() == ["scripted"]
    environ = {"HEADRACE_API_KEY": key, "HEADRACE_URL": up.url}
    assert len(headrace("submit", "hi", "--max-tokens", "3", "--follow", **environ).split()) == 3
    (tmp_path / "in.jsonl").write_text('"one"\n"two"\n')
    words = ("batch", "run", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--max-tokens", "3")
    assert json.loads(headrace(*words, "--json", **environ))["failed"] == 0
    assert headrace("config", "show", **environ)
    with HeadraceClient(up.url, patience=1) as client, pytest.raises(Unauthenticated):
        client.models()
    with HeadraceClient(up.url, api_key="hr_x", patience=1) as client, pytest.raises(InvalidApiKey):
        client.models()
    listed = json.loads(headrace("keys", "list", "--json", "--data-dir", str(up.data_dir)))
    assert key.rsplit("_", 1)[0] in [each["id"] for each in listed]


def test_a_batch_has_the_permissions_of_its_key(up: Launched) -> None:
    """Given a batch of a key for other models, its lines are refused with 403, and other tenants see nothing."""
    sdk, other = (
        openai.OpenAI(base_url=f"{up.url}/v1", api_key=new_key(up.data_dir, "--tenant", tenant, *scope))
        for tenant, scope in (("a", ("--models", "else")), ("b", ()))
    )
    body = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = sdk.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    deadline = time.monotonic() + LIMIT_S
    while batch.status != "completed":
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = sdk.batches.retrieve(batch.id)
    assert batch.output_file_id is None
    assert batch.error_file_id is not None
    error = json.loads(sdk.files.content(batch.error_file_id).text)
    assert error["response"]["status_code"] == 403
    for seen in (lambda: other.batches.retrieve(batch.id), lambda: other.files.content(batch.error_file_id or "")):
        with pytest.raises(openai.NotFoundError):
            seen()
    sdk.close()
    other.close()


def test_the_panel_of_a_server_without_keys(scripted_up: Launched) -> None:
    scripted_up.await_line("listens on loopback only")
    assert httpx.get(f"{scripted_up.url}/v1/models").status_code == 200
