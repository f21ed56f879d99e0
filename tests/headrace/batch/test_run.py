"""Batch file over the API: complete, with bad lines, through Ctrl-C, and through kill -9 of command and API."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.batch_command import BatchRun, chats, refusal, results, started_jobs, write
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]


async def check_complete(cluster: Cluster, source: Path, out: Path, count: int, known: set[str]) -> None:
    """Check that each line was answered once, and started_jobs once."""
    found = results(out)
    assert sorted(each["custom_id"] for each in found) == sorted(f"c{i}" for i in range(count))
    assert all(each["response"]["status_code"] == 200 for each in found)
    assert len({each["response"]["request_id"] for each in found}) == count
    assert len(started_jobs(cluster) - known) == count, "a line was run twice"
    assert not out.with_name(out.name + ".run").exists()


LONG_LINE = json.dumps("x" * (9 * 2**20)) + "\n"
EVERY_KIND_OF_LINE = [
    *chats(1),
    {"custom_id": "job", "url": "/v1/jobs", "body": {"model": "scripted", "prompt": "a", "max_tokens": 2}},
    "\n",
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "n": 2, "logprobs": True},
    {"custom_id": "p", "prompt": "a"},
    "just a string",
    json.dumps("just a string") + "\n",
    "{broken\n",
    '"\\ud800"\n',
    "[" * 100_000 + "\n",
    {"custom_id": 7, "prompt": "x"},
    {"custom_id": "get", "method": "GET", "url": "/v1/jobs", "body": {}},
    {"custom_id": "url", "url": "/v1/models", "body": {}},
    {"custom_id": "stream", "url": "/v1/chat/completions", "body": {"stream": True}},
    {"custom_id": "model", "prompt": "x", "model": "unknown"},
    {"custom_id": "field", "prompt": "x", "temperature": -1},
    LONG_LINE,
    {"custom_id": "last", "prompt": "b", "max_tokens": 1},
]


async def test_a_file_of_every_kind_of_line(cluster: Cluster, tmp_path: Path) -> None:
    """Given OpenAI batch lines, plain lines and bad lines, each has a record, and the summary is a line of JSON."""
    source = write(tmp_path / "in.jsonl", EVERY_KIND_OF_LINE)
    out = tmp_path / "out.jsonl"
    summary = await BatchRun(cluster.urls[0], source, out, "--ordered", "--max-tokens", "4").wait()
    found = results(out)
    assert (summary["lines"], summary["done"], summary["skipped"], summary["stopped"]) == (16, 16, 0, False)
    assert summary["failed"] == sum(
        (each["response"] or {"status_code": 400})["status_code"] >= 400 for each in found
    )
    numbers = [int(each["id"].rsplit("_", 1)[1]) for each in found]
    assert numbers == sorted(set(numbers))
    chat, job, choices, prompt, merged, *bad = found
    assert chat["response"]["body"]["object"] == "chat.completion"
    assert chat["response"]["body"]["usage"]["completion_tokens"] == 3
    assert chat["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert (job["custom_id"], job["response"]["body"]["state"]) == ("job", "completed")
    assert [each["index"] for each in choices["response"]["body"]["choices"]] == [0, 1]
    assert (choices["custom_id"], prompt["custom_id"]) == ("line-4", "p")
    assert prompt["response"]["body"]["usage"]["completion_tokens"] == 4, (
        "the option applies to lines without max_tokens"
    )
    assert merged["error"]["code"] == "malformed_body", "a string without quotes does not swallow the next line"
    codes = [
        each["error"]["code"] if each["error"] else each["response"]["body"]["error"]["code"] for each in bad[:-1]
    ]
    assert codes == [
        *["malformed_body"] * 3,
        *["invalid_request"] * 4,
        "model_not_found",
        "invalid_request",
        "payload_too_large",
    ]
    assert bad[-1]["response"]["status_code"] == 200


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_a_stopped_run_resumes(cluster: Cluster, tmp_path: Path, how: signal.Signals) -> None:
    """Given a run that is stopped twice, once with half a record, each line has one run and one result."""
    known = started_jobs(cluster)
    source, out = write(tmp_path / "in.jsonl", chats(120, pace=20)), tmp_path / "out.jsonl"
    for count in (20, 60):
        command = BatchRun(cluster.urls[0], source, out, "--concurrency", "16")
        await command.wait_for_lines(count)
        command.process.send_signal(how)
        await command.wait(130 if how is signal.SIGINT else -how)
    with out.open("ab") as file:
        file.write(b'{"id":"batch_req_0123')
    summary = await BatchRun(cluster.urls[0], source, out).wait()
    assert summary["skipped"] >= 60
    await check_complete(cluster, source, out, 120, known)
    again = await BatchRun(cluster.urls[0], source, out).wait()
    assert (again["done"], again["skipped"]) == (120, 120)


async def test_a_run_killed_before_its_first_result_rejoins(cluster: Cluster, tmp_path: Path) -> None:
    known = started_jobs(cluster)
    source, out = write(tmp_path / "in.jsonl", chats(4, pace=300)), tmp_path / "out.jsonl"
    command = BatchRun(cluster.urls[0], source, out)
    while len(started_jobs(cluster) - known) < 4:
        assert command.process.poll() is None
    command.process.kill()
    await command.wait(-signal.SIGKILL)
    assert out.read_bytes() == b""
    for options, problem in (
        (("--model", "other"), "started with model"),
        (("--kafka", "127.0.0.1:1"), "over HTTP"),
    ):
        assert problem in refusal(cluster.urls[0], source, out, *options)
    await BatchRun(cluster.urls[0], source, out).wait()
    await check_complete(cluster, source, out, 4, known)


async def test_a_run_outlives_the_api(cluster: Cluster, tmp_path: Path) -> None:
    """Given an API that dies during a run, the run waits for its return, or ends and can be resumed."""
    known = started_jobs(cluster)
    source, out = write(tmp_path / "in.jsonl", chats(60, pace=20)), tmp_path / "out.jsonl"
    command = BatchRun(cluster.urls[0], source, out, "--concurrency", "16")
    await command.wait_for_lines(10)
    cluster.apis[0].kill()
    await cluster.apis[0].start()
    await command.wait_for_lines(30)
    cluster.apis[0].kill()
    command.process.kill()
    await command.wait(-signal.SIGKILL)
    impatient = BatchRun(cluster.urls[0], source, out, "--patience", "0")
    assert "lines are done; run the same command again to resume" in (await impatient.wait(1))["error"]
    await cluster.apis[0].start()
    await BatchRun(cluster.urls[0], source, out).wait()
    await check_complete(cluster, source, out, 60, known)


async def test_a_foreign_output_file_is_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    """Given another file, or results of another input, the run is refused and the file is unchanged."""
    source, out = write(tmp_path / "in.jsonl", chats(3)), tmp_path / "out.jsonl"
    out.write_text("my notes\n")
    url = cluster.urls[0]
    assert "does not hold results" in (await BatchRun(url, source, out).wait(2))["error"]
    assert out.read_text() == "my notes\n"
    out.write_text("notes")
    assert refusal(url, source, out)
    out.unlink()
    assert "must not be the input" in refusal(url, source, source)
    assert "cannot read" in refusal(url, tmp_path / "none", out)
    await BatchRun(url, source, out).wait()
    other = write(tmp_path / "other.jsonl", chats(4))
    assert "does not hold results" in refusal(url, other, out)
