"""Launcher and all processes, as a user runs them, on the scripted engine, so that every gap is visible."""

from __future__ import annotations

import concurrent.futures
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from headrace.batch.kafka_reader import TopicReader
from headrace.cli.main import app
from headrace.client import HeadraceClient
from shared.errors import ModelNotFound
from shared.kafka import topics
from shared.settings import load
from tests.support.batch_client import BatchClient, line
from tests.support.followed_job import follow, scripted_tokens
from tests.support.kafka_mock import address, make_topics
from tests.support.launched_server import OTHER_PYTHON, Launched
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow

TOKENS = 2000


def body(prompt: str, **fields: object) -> dict[str, object]:
    return {"model": "scripted", "prompt": prompt, "max_tokens": TOKENS, **fields}


@pytest.mark.parametrize("role", ["worker", "api", "valkey"])
def test_answers_survive_the_death_of_a_process(scripted_up: Launched, role: str) -> None:
    """Given running streams, if a process is killed, each answer is complete."""
    prompts = [f"prompt {i} [pace 3]" for i in range(4)]  # slow enough to end after the kill
    begun = threading.Event()
    with HeadraceClient(scripted_up.url) as client, concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        jobs = [client.submit(body(prompt))["id"] for prompt in prompts]
        following = [pool.submit(follow, scripted_up.url, job, begun) for job in jobs]
        assert begun.wait(LIMIT_S)
        assert not all(answer.done() for answer in following)
        scripted_up.kill(role)
        scripted_up.await_ready()
        for prompt, answer in zip(prompts, following, strict=True):
            assert answer.result(timeout=LIMIT_S) == scripted_tokens(prompt, TOKENS)


def test_the_launcher_outlives_requests_that_kill_workers(tmp_path: Path) -> None:
    """Given one worker and requests that kill it, each is set aside after two workers, and others are answered."""
    launched = Launched(tmp_path / "data", "--model", "scripted", "--workers", "1")
    try:
        launched.await_line("^ready: ")
        lasting = [launched.child(role).pid for role in ("api", "valkey")]
        with HeadraceClient(launched.url) as client:
            for number in range(2):
                poison = client.submit(body(f"[die 2] {number}"))["id"]
                *_, end = client.events(poison)
                assert (end.name, end.data["error"]["code"]) == ("error", "request_abandoned")
                assert httpx.get(f"{launched.url}/live").status_code == 200
            job = client.submit(body("an ordinary one"))["id"]
            assert follow(launched.url, job) == scripted_tokens("an ordinary one", TOKENS)
            letters = client.dead_letters()
        assert [letter["attempts"] for letter in letters] == [2, 2]
        assert sum("worker-1 died (exit status 1), restart in" in line for line in launched.lines) == 4
        assert [launched.child(role).pid for role in ("api", "valkey")] == lasting
    finally:
        launched.stop()


def test_workers_run_in_the_interpreter_of_their_setting(scripted_up: Launched) -> None:
    assert scripted_up.child("worker").cmdline()[0] == OTHER_PYTHON
    assert scripted_up.child("api").cmdline()[0] == sys.executable


def test_invalid_settings_of_a_child_end_the_start(scripted_up: Launched, tmp_path: Path) -> None:
    """Given a metrics port of the worker that is in use, the launcher reports one clear error at once."""
    command = [sys.executable, "-m", "headrace", "up", "--model", "scripted", "--port", "0"]
    ended = subprocess.run(
        [*command, "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HEADRACE_METRICS_PORT": str(scripted_up.port)},
    )
    assert ended.returncode == 2
    assert f"worker-1 cannot start: metrics_port {scripted_up.port} on 127.0.0.1 cannot be used" in ended.stderr


PLANS = """
default_plan = "free"
user_requests = "60/minute"

[plans.free]
requests = "10/second; 500/hour"
concurrent = 4

[plans.paid]
tokens_per_day = 1000000
"""


def test_answers_are_there_after_ctrl_c_and_a_restart(tmp_path: Path) -> None:
    """Given plans in the settings file, too, each process takes them; no process outlives a killed launcher."""
    file = tmp_path / "headrace.toml"
    file.write_text(PLANS)
    options = ("--model", "scripted", "--config", str(file))
    first = Launched(tmp_path / "data", *options)
    first.await_line("^ready: ")
    with HeadraceClient(first.url) as client:
        job = client.submit(body("kept"))["id"]
        assert follow(first.url, job) == scripted_tokens("kept", TOKENS)
    assert first.stop() == 0

    second = Launched(tmp_path / "data", *options)
    try:
        second.await_line("^ready: ")
        assert follow(second.url, job) == scripted_tokens("kept", TOKENS)
        limited = httpx.post(f"{second.url}/v1/jobs", json=body("limited", max_tokens=1), timeout=LIMIT_S)
        assert limited.headers["x-ratelimit-limit-requests"] == "10"
        children = psutil.Process(second.process.pid).children(recursive=True)
        assert len(children) == 4  # Valkey, API, worker, tasks
        second.process.send_signal(signal.SIGKILL)
        assert not psutil.wait_procs(children, timeout=LIMIT_S)[1]
    finally:
        second.stop()


def completed(client: BatchClient, batch: openai.types.Batch) -> openai.types.Batch:
    """Wait until a batch has completed, and return it."""
    deadline = time.monotonic() + LIMIT_S
    while batch.status != "completed":
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = client.sdk.batches.retrieve(batch.id)
    return batch


def test_batches_work_out_of_the_box(scripted_up: Launched) -> None:
    """Given only the launcher, a batch runs, also after the death of its tasks process."""
    scripted_up.kill("tasks")
    client = BatchClient(scripted_up.url)
    batch = client.start([line(f"c{number}") for number in range(100)])
    assert completed(client, batch).request_counts.completed == 100


def test_everything_works_with_kafka_as_the_queue(tmp_path: Path, bootstrap: str) -> None:
    """Given the Kafka setting, a stream and a job go through the topic, and a batch runs beside them."""
    model = f"up-{secrets.token_hex(4)}"
    make_topics(bootstrap, topics.requests(model), topics.api_requests(model))
    given = {**address(bootstrap), "queue": "kafka", "served_model_name": model}
    launched = Launched(tmp_path / "data", "--model", "scripted", **given)
    try:
        launched.await_line("^ready: ")
        with HeadraceClient(launched.url) as client:
            asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            assert len("".join(client.chat_text(asked)).split()) == 5
            job = client.submit(body("through a topic", model=model))["id"]
            assert follow(launched.url, job) == scripted_tokens("through a topic", TOKENS)
        batches = BatchClient(launched.url)
        batch = batches.start([line(f"c{number}", model=model) for number in range(20)])
        assert completed(batches, batch).request_counts.completed == 20
        with TopicReader(load(address(bootstrap)).settings, [topics.api_requests(model)], {}) as reader:
            assert (
                sum(reader.end_offsets().values()) == 2
            )  # the tasks process puts a batch's lines into Redis directly
    finally:
        launched.stop()


def test_a_second_launcher_on_the_same_data_is_refused(scripted_up: Launched, tmp_path: Path) -> None:
    def launch(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headrace", "up", "--model", "scripted", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)

    same_port = launch("--data-dir", str(tmp_path / "other"), "--port", str(scripted_up.port))
    same_data = launch("--data-dir", str(scripted_up.data_dir), "--port", "0")

    assert (same_port.returncode, same_data.returncode) == (2, 2)
    assert f"port {scripted_up.port}" in same_port.stderr
    assert "in use by another Headrace" in same_data.stderr


def test_the_worker_has_metrics_and_typed_errors(scripted_up: Launched) -> None:
    with HeadraceClient(scripted_up.url) as client:
        with pytest.raises(ModelNotFound):
            client.submit({**body("x"), "model": "other"})
        job = client.submit(body("x" * 9000, max_tokens=8000))["id"]
        [end] = client.events(job)
    assert (end.name, end.data["error"]["code"]) == ("error", "context_length_exceeded")
    scripted_up.await_line("^metrics: ")
    [url] = [line.split()[1] for line in scripted_up.lines if line.startswith("metrics: ")]
    metrics = httpx.get(url).text
    assert "headrace" in metrics


def test_commands_work_against_a_running_server(scripted_up: Launched) -> None:
    def headrace(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--url", scripted_up.url])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert headrace("models").split() == ["scripted"]
    said = headrace("submit", "hi", "--max-tokens", "5", "--follow")
    assert len(said.split()) == 5
    job = json.loads(headrace("submit", "hi", "--max-tokens", "5", "--json"))["id"]
    assert headrace("tail", job) == said
    assert [json.loads(line)["event"] for line in headrace("tail", job, "--after", "3", "--json").splitlines()] == [
        "token",
        "done",
    ]
    assert headrace("cancel", job).split() == [job, "completed"]
