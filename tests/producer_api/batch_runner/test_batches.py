"""Batches through the `openai` package and real processes, some of which are killed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from producer_api.batch_runner.batch_runner import MAX_ATTEMPTS
from producer_api.batch_runner.lines import CHUNK_LINES
from shared.models.model_store import MINILM
from shared.protocol import line_job_id
from shared.queue.administration import RedisQueueAdministration
from shared.redis.client import RedisServer
from tests.support.batch_client import ENDED, POLL_S, BatchClient, ids, jsonl, line, until
from tests.support.cluster import Cluster
from tests.support.fakes import MODEL
from tests.support.node import Node
from tests.support.waiting import LIMIT_S
from tests.support.webhook_receiver import receiving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

COUNT = 6 * CHUNK_LINES  # lines of a batch that several processes share
SLOW = 228  # lines beside ten quick ones: a second chunk of them that comes first leaves seats for the quick ones
ENDLESS = "[pace 1000]"  # with 2,000 tokens; they outlast the test on any machine
MIB = 2**20


async def ended(client: BatchClient, batch_id: str) -> Any:
    return await until(client, batch_id, lambda batch: batch.status in ENDED)


async def start(client: BatchClient, lines: list[Any], window: str = "24h") -> Any:
    return await asyncio.to_thread(client.start, lines, window)


@pytest.fixture
def client(cluster: Cluster) -> BatchClient:
    return BatchClient(cluster.urls[0])


async def test_a_batch_has_output_errors_and_counts(client: BatchClient) -> None:
    """Each line is in its file, in order, and the counts are right."""
    lines = [line(f"c{number}", f"prompt {number}") for number in range(150)]
    lines[0] = line("c0", "prompt 0", keep_alive="5m", **{"x-headrace-ttft-target-ms": 5})  # a header, not a field
    lines.insert(70, line("hot", temperature=-1))
    lines.insert(71, line("unknown", model="unknown"))
    lines.insert(72, line("streamed", stream=True))
    batch = await ended(client, (await start(client, lines)).id)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 153, "completed": 150, "failed": 3}
    output, errors = await asyncio.to_thread(client.results, batch)
    assert [each["custom_id"] for each in output] == [f"c{number}" for number in range(150)]
    assert [each["custom_id"] for each in errors] == ["hot", "unknown", "streamed"]
    assert [each["response"]["status_code"] for each in errors] == [400, 404, 400]
    assert errors[0]["response"]["body"]["error"]["param"] == "temperature"
    [first, *_] = output
    assert first["error"] is None and first["response"]["status_code"] == 200
    assert first["response"]["headers"] == {"x-headrace-ignored-fields": "keep_alive, x-headrace-ttft-target-ms"}
    assert first["response"]["body"]["object"] == "chat.completion"
    assert first["response"]["body"]["usage"]["completion_tokens"] == 4
    assert first["response"]["body"]["system_fingerprint"] == "fp_scripted"
    file = await asyncio.to_thread(client.sdk.files.retrieve, batch.output_file_id)
    assert (file.purpose, file.status) == ("batch_output", "processed")
    listed = await asyncio.to_thread(client.sdk.batches.list, limit=1)
    assert listed.data[0].id == batch.id


async def test_the_end_of_a_batch_sends_a_webhook(client: BatchClient) -> None:
    async with receiving() as receiver:
        hook = {"url": receiver.url()}
        made = await asyncio.to_thread(client.start, [line("a"), line("b")], webhook=hook)
        [webhook] = await receiver.until(1)
        batch = await until(client, made.id, lambda batch: batch.webhook["state"] == "delivered")
    data = webhook.json["data"]
    assert (webhook.json["type"], data["id"], data["output_file_id"]) == (
        "batch.completed",
        made.id,
        batch.output_file_id,
    )
    assert data["request_counts"] == batch.request_counts.to_dict() == {"total": 2, "completed": 2, "failed": 0}


async def test_a_line_may_have_several_prompts(client: BatchClient) -> None:
    """Choices have OpenAI's indices; a line with one bad prompt is refused completely."""
    url = "/v1/completions"
    bodies = {"two": {"prompt": ["a", "b"], "n": 2}, "one": {"prompt": [1, 2], "echo": True}, "bad": {"prompt": []}}
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, "max_tokens": 3, **fields}}
        for name, fields in bodies.items()
    ]
    batch = await ended(client, (await asyncio.to_thread(client.start, lines, "24h", url)).id)
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    output, [bad] = await asyncio.to_thread(client.results, batch)
    two, one = (each["response"]["body"] for each in output)
    assert [choice["index"] for choice in two["choices"]] == [0, 1, 2, 3]
    counts = {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}
    assert two["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    assert one["choices"][0]["text"].startswith("\x01\x02")
    assert (bad["response"]["status_code"], bad["response"]["body"]["error"]["param"]) == (400, "prompt")


async def test_lines_may_be_responses(client: BatchClient) -> None:
    """They are not stored; a wrong line is refused with the names that its fields have in the body."""
    url = "/v1/responses"
    tools = [{"type": "web_search"}, {"type": "function", "name": "no name", "parameters": {}}]
    bodies = {
        "good": {"input": "a"},
        "stored": {"input": "a", "store": True},
        "negative": {"max_output_tokens": -1},
        "tools": {"tools": tools},
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, "input": "b", **fields}}
        for name, fields in bodies.items()
    ]
    batch = await ended(client, (await asyncio.to_thread(client.start, lines, "24h", url)).id)
    [good], refused = await asyncio.to_thread(client.results, batch)
    response = good["response"]["body"]
    assert (response["object"], response["status"], response["store"]) == ("response", "incomplete", False)
    assert response["output"][0]["content"][0]["text"]
    params = [each["response"]["body"]["error"]["param"] for each in refused]
    assert params == ["store", "max_output_tokens", "tools[1].name"]
    with pytest.raises(openai.NotFoundError):
        await asyncio.to_thread(client.sdk.responses.retrieve, response["id"])


async def test_lines_may_be_embeddings_or_scores(client: BatchClient, cluster: Cluster, minilm: Path) -> None:
    """All lines have their vectors, equal to those over HTTP, and the scores of these."""
    url, model = "/v1/embeddings", MINILM.name
    environment = dict(cluster.workers[0].environment)
    node = cluster.add("worker", environment | {"HEADRACE_MODEL": str(minilm), "HEADRACE_THREADS": "1"})
    await node.start()
    texts = {"many": [f"mill {number}" for number in range(40)], "one": ["mill 0"]}
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": model, "input": given, "dimensions": 8}}
        for name, given in texts.items()
    ]
    batch = await ended(client, (await asyncio.to_thread(client.start, lines, "24h", url)).id)
    assert batch.status == "completed", batch
    output, errors = await asyncio.to_thread(client.results, batch)
    many, one = (each["response"]["body"]["data"] for each in output)
    assert errors == []
    assert [each["index"] for each in many] == list(range(40))
    assert many[0]["embedding"] == one[0]["embedding"]
    single = await asyncio.to_thread(client.sdk.embeddings.create, model=model, input="mill 0", dimensions=8)
    assert single.data[0].embedding == one[0]["embedding"]
    body = {"model": model, "queries": "mill 0", "documents": ["mill 0", "court"]}
    lines = [{"custom_id": "a", "method": "POST", "url": "/v1/score", "body": body}]
    batch = await ended(client, (await asyncio.to_thread(client.start, lines, "24h", "/v1/score")).id)
    [output], errors = await asyncio.to_thread(client.results, batch)
    same, other = (each["score"] for each in output["response"]["body"]["data"])
    assert errors == []
    assert other < 0.9 < same
    await node.stop()
    cluster.workers.remove(node)


async def test_a_large_upload_takes_no_memory(client: BatchClient, cluster: Cluster, tmp_path: Path) -> None:
    """Uploading and reading a large file does not raise the peak memory of the API."""
    path = tmp_path / "large"
    path.write_bytes(b"0123456789abcdef" * (4 * MIB))
    [api] = cluster.apis
    largest = before = api.rss

    def transfer() -> int:
        with path.open("rb") as content:
            made = client.sdk.files.create(file=("large", content), purpose="user_data")
        read = client.sdk.files.content(made.id).content
        assert read == path.read_bytes()
        client.sdk.files.delete(made.id)
        return made.bytes

    transferring = asyncio.create_task(asyncio.to_thread(transfer))
    while not transferring.done():
        largest = max(largest, api.rss)
        await asyncio.sleep(0.01)
    assert await transferring == 64 * MIB
    assert largest - before < 16 * MIB


async def test_a_custom_id_may_repeat_across_batches(client: BatchClient) -> None:
    """The same file twice makes two complete batches with requests of their own."""
    batches = [await start(client, [line("same", "x")]) for _ in range(2)]
    found = []
    for batch in batches:
        [answer], _ = await asyncio.to_thread(client.results, await ended(client, batch.id))
        found.append(answer)
    assert found[0]["custom_id"] == found[1]["custom_id"] == "same"
    assert found[0]["response"]["request_id"] != found[1]["response"]["request_id"]


async def test_a_wrong_file_is_refused_line_by_line(client: BatchClient) -> None:
    """The batch fails and names each bad line, and nothing runs."""
    good = line("a")
    content = jsonl([good, {**good, "url": "/v1/embeddings"}, {**good, "method": "GET"}, good, {"custom_id": "b"}])
    content += b"{not json\n\n" + jsonl([{**line(""), "custom_id": ""}, {**line("c"), "body": []}])
    content += b'{"custom_id": "d", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    sdk = client.sdk
    file = await asyncio.to_thread(sdk.files.create, file=("in.jsonl", content), purpose="batch")
    made = await asyncio.to_thread(
        sdk.batches.create, input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await ended(client, made.id)
    assert batch.status == "failed" and batch.failed_at
    assert [(each.line, each.code) for each in batch.errors.data] == [
        (2, "invalid_url"),
        (3, "invalid_method"),
        (4, "duplicate_custom_id"),
        (5, "missing_required_parameter"),
        (6, "invalid_json_line"),
        (8, "invalid_custom_id"),
        (9, "invalid_body"),
        (10, "invalid_json_line"),
    ]
    assert batch.output_file_id is None and batch.request_counts.total == 0


async def test_invalid_batches_are_refused_by_field(client: BatchClient) -> None:
    sdk = client.sdk
    file = await asyncio.to_thread(sdk.files.create, file=("x", b"{}"), purpose="user_data")
    good: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for wrong, param in (
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"endpoint": "/v1/jobs"}, "endpoint"),
        ({"completion_window": "25h"}, "completion_window"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({}, "input_file_id"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await asyncio.to_thread(sdk.batches.create, input_file_id=file.id, **(good | wrong))
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        await asyncio.to_thread(sdk.batches.create, input_file_id="file-none", **good)
    for call in (sdk.batches.retrieve, sdk.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await asyncio.to_thread(call, "batch_none")


async def test_cancelling_keeps_finished_lines(client: BatchClient) -> None:
    """Finished lines stay in the output; the others are reported as cancelled."""
    lines = [line(f"quick{number}") for number in range(10)]
    lines += [line(f"slow{number}", ENDLESS, 2000) for number in range(SLOW)]
    made = await start(client, lines)
    await until(client, made.id, lambda batch: batch.request_counts.completed >= 10)
    cancelling = await asyncio.to_thread(client.sdk.batches.cancel, made.id)
    assert cancelling.status == "cancelling" and cancelling.cancelling_at
    batch = await ended(client, made.id)
    assert batch.status == "cancelled" and batch.cancelled_at
    output, errors = await asyncio.to_thread(client.results, batch)
    assert ids(output) == ids(lines[:10])
    assert ids(output, errors) == ids(lines)
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        await asyncio.to_thread(client.sdk.batches.cancel, made.id)


async def test_an_expired_batch_keeps_finished_lines(client: BatchClient) -> None:
    """Finished lines stay in the output; the others are reported as expired."""
    lines = [line(f"quick{number}") for number in range(10)]
    lines += [line(f"slow{number}", ENDLESS, 2000) for number in range(SLOW)]
    batch = await ended(client, (await start(client, lines, "3s")).id)
    assert batch.status == "expired" and batch.expired_at >= batch.expires_at
    output, errors = await asyncio.to_thread(client.results, batch)
    assert ids(output) <= ids(lines[:10])
    assert len(output) == batch.request_counts.completed
    assert ids(output, errors) == ids(lines)
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}


async def test_the_input_may_be_deleted_while_a_batch_runs(client: BatchClient, cluster: Cluster) -> None:
    """The batch continues, and afterwards nothing is left on the disk."""
    made = await start(client, [line(f"c{number}", "[pace 100]", 10) for number in range(100)])
    await until(client, made.id, lambda batch: batch.status == "in_progress")
    await asyncio.to_thread(client.sdk.files.delete, made.input_file_id)
    batch = await ended(client, made.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 100)
    deadline = time.monotonic() + LIMIT_S
    while list((cluster.folder / "files" / "batches").iterdir()):
        assert time.monotonic() < deadline
        await asyncio.sleep(POLL_S)


async def test_a_shared_batch_survives_killed_processes(client: BatchClient, cluster: Cluster) -> None:
    """Each kind of process is killed during a long batch; every line is answered exactly once."""
    lines = [line(f"c{number}", f"[pace 200] {number}", 6) for number in range(COUNT)]
    known = cluster.requests()
    made = await start(client, lines)

    async def kill_after(completed: int, victim: Node) -> None:
        await until(client, made.id, lambda batch: batch.request_counts.completed >= completed)
        await queues.set_gate(MODEL, "paused")  # the batch does not end while the process starts
        victim.kill()
        await victim.start()
        await queues.set_gate(MODEL, "open")

    server = RedisServer.connect(cluster.store.url, timeout=LIMIT_S)
    queues = RedisQueueAdministration(server)
    for completed, victim in (
        (50, cluster.tasks[0]),
        (150, cluster.apis[0]),
        (200, cluster.workers[0]),
        (250, cluster.tasks[1]),
    ):
        await kill_after(completed, victim)
    await server.client.aclose(close_connection_pool=True)
    batch = await ended(client, made.id)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": COUNT, "completed": COUNT, "failed": 0}
    output, errors = await asyncio.to_thread(client.results, batch)
    assert errors == []
    assert [each["custom_id"] for each in output] == [each["custom_id"] for each in lines]
    made_ids = cluster.requests() - known
    first, *others = (
        {line_job_id(made.id, number, attempt) for number in range(1, COUNT + 1)} for attempt in range(MAX_ATTEMPTS)
    )
    # A process that took over a line joined its request. Another attempt follows only a lost one, which a machine
    # that starves a worker beyond its lease three times causes.
    assert first <= made_ids <= first.union(*others)


async def test_a_stopping_process_hands_over_its_chunks(client: BatchClient, cluster: Cluster) -> None:
    """After SIGTERM to its process, another process finishes the batch at once."""
    first, second = cluster.tasks
    await second.stop()
    lines = [line(f"c{number}", f"[pace 100] {number}", 4) for number in range(COUNT)]
    made = await start(client, lines)
    await until(client, made.id, lambda batch: batch.request_counts.completed >= 50)
    left = second.count("batch_left")
    second.spawn()
    assert await first.stop() == 0
    batch = await ended(client, made.id)
    await second.logged("batch_left", left + 1)  # it worked on the batch
    await first.start()
    output, _ = await asyncio.to_thread(client.results, batch)
    assert [each["custom_id"] for each in output] == [each["custom_id"] for each in lines]
