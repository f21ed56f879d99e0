"""Task `headrace.generate`, called by name from another Celery application."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker

from producer_api.batch_runner.celery_app import make_app
from producer_api.batch_runner.event_loop_host import EventLoopHost
from shared.backend import Backend
from shared.errors import NotFound
from shared.files.content import new_file_id
from shared.files.store import Files
from shared.settings import load
from tests.support.batch_client import line
from tests.support.cluster import Cluster
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture
def app(cluster: Cluster) -> Celery:
    prefix = {"global_keyprefix": "hr:celery:"}
    user = Celery("user", broker=cluster.store.url, backend=cluster.store.url, set_as_current=False)
    user.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    return user


def body(content: str, **fields: Any) -> dict[str, Any]:
    asked: dict[str, Any] = line("x", content, **fields)["body"]
    return asked


def send(app: Celery, asked: dict[str, Any], **options: Any) -> Any:
    return app.send_task("headrace.generate", (asked,), queue="headrace", **options)


async def test_a_task_returns_a_completion_as_json(app: Celery) -> None:
    """An error names the field, and pickle is not read."""
    send(app, body("pickled"), serializer="pickle")
    answer = await asyncio.to_thread(send(app, body("hello")).get, LIMIT_S)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 4
    with pytest.raises(Exception, match="temperature") as caught:
        await asyncio.to_thread(send(app, body("hello", temperature=-1)).get, LIMIT_S)
    assert type(caught.value).__name__ == "InvalidRequest"


async def test_an_unknown_task_is_logged_without_its_body(app: Celery, cluster: Cluster) -> None:
    before = [node.count("celery") for node in cluster.tasks]
    app.send_task("headrace.unknown", (body("canary-71c"),), queue="headrace")
    async with asyncio.timeout(LIMIT_S):
        while [node.count("celery") for node in cluster.tasks] == before:
            await asyncio.sleep(0.02)
    assert not any("canary-71c" in node.tail() for node in cluster.tasks)


async def test_a_task_delivered_twice_runs_once(app: Celery, cluster: Cluster) -> None:
    task_id, before = str(uuid.uuid4()), cluster.requests()
    asked = body("again", max_tokens=20, temperature=1)
    results = [send(app, asked, task_id=task_id) for _ in range(2)]
    answers = [await asyncio.to_thread(result.get, LIMIT_S) for result in results]
    assert answers[0] == answers[1]
    again = await asyncio.to_thread(send(app, asked, task_id=task_id).get, LIMIT_S)
    assert again["id"] == answers[0]["id"]
    assert len(cluster.requests() - before) == 1


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's own, in its worker
async def test_the_next_task_of_a_chain_gets_the_answer(app: Celery) -> None:
    @app.task(name="user.text")
    def text(answer: dict[str, Any]) -> str:
        return answer["choices"][0]["message"]["content"]

    with start_worker(app, pool="solo", perform_ping_check=False, queues=["user"]):
        first = app.signature("headrace.generate", (body("first"),), queue="headrace")
        chained = first | text.s().set(queue="user")
        assert (await asyncio.to_thread(chained.apply_async().get, LIMIT_S)).startswith(" ")


async def test_beat_removes_expired_files_and_old_folders(cluster: Cluster, tmp_path: Path) -> None:
    given = {"redis_url": cluster.store.url, "files_dir": cluster.folder / "files", "data_dir": tmp_path}
    settings = load(given).settings
    left = settings.files / "batches" / "batch_of_old"
    left.mkdir(parents=True)
    backend = Backend.open(settings)
    files = Files.from_settings(settings, backend)
    old = new_file_id()
    draft = files.contents.draft(old)
    draft.write(b"{}")
    await files.keep(draft, old, tenant="default", filename="x", purpose="batch", life=0.0)

    with make_app(settings, EventLoopHost(settings)) as app:
        entries = app.conf.beat_schedule.values()
        [entry] = [each for each in entries if each["task"] == "headrace.upkeep"]
        await asyncio.to_thread(app.tasks[entry["task"]].apply_async, **entry["options"])
    async with asyncio.timeout(LIMIT_S):
        while left.exists() or await files.records.known(old):
            await asyncio.sleep(0.02)
    with pytest.raises(NotFound):
        files.contents.find(old)
    await backend.close()


async def test_a_task_survives_the_stop_of_its_process(app: Celery, cluster: Cluster) -> None:
    """After SIGTERM, another process continues with the same request."""
    [first, second], before = cluster.tasks, cluster.requests()
    await second.stop()
    result = send(app, body("[pace 100]", max_tokens=30))
    while not cluster.requests() - before:
        await asyncio.sleep(0.05)
    await asyncio.gather(second.start(), first.stop())
    answer = await asyncio.to_thread(result.get, LIMIT_S)
    await first.start()
    assert answer["usage"]["completion_tokens"] == 30
    assert len(cluster.requests() - before) == 1


async def test_foreign_data_in_celerys_keys_stops_no_task(app: Celery, cluster: Cluster) -> None:
    """A task after invalid messages is answered, and no process exits."""
    before = [process.pid for process in cluster.tasks]
    junk = [
        b"\xff\xfe",
        b"{",
        b"5",
        b"[" * 5000,
        b"{}",
        b'{"properties": {}}',
        b'{"properties": {"delivery_tag": "a", "body_encoding": "rot13"}, "body": "x"}',
        b'{"properties": {"delivery_tag": "b", "delivery_info": {"exchange": "", "routing_key": "headrace"}}, '
        b'"headers": {"task": "headrace.generate"}, "content-type": "application/json", "body": "5"}',
        b'{"properties": {"delivery_tag": "c", "delivery_info": {"exchange": "", "routing_key": "headrace"}}, '
        b'"headers": {"task": ["x"], "id": 5}, "content-type": "application/json", "body": "5"}',
    ]
    with redis.Redis.from_url(cluster.store.url) as client:
        client.lpush("hr:celery:headrace", *junk)
        client.hset("hr:celery:unacked", "junk", "{")
        client.zadd("hr:celery:unacked_index", {"junk": 1})
        other_type = "hr:celery:headrace\x06\x163"  # the list of another priority
        client.set(other_type, "a string")
        async with asyncio.timeout(LIMIT_S):
            while client.exists(other_type):
                await asyncio.sleep(0.1)
        answer = await asyncio.to_thread(send(app, body("after junk")).get, LIMIT_S)
        assert answer["object"] == "chat.completion"
        async with asyncio.timeout(LIMIT_S):
            while client.hexists("hr:celery:unacked", "junk"):
                await asyncio.sleep(0.1)
    assert [process.pid for process in cluster.tasks] == before
    assert all(process.running for process in cluster.tasks)


@pytest.mark.parametrize("name", ["unacked", "unacked_index"])
async def test_an_index_of_another_type_stops_no_task(app: Celery, cluster: Cluster, name: str) -> None:
    before = [process.pid for process in cluster.tasks]
    with redis.Redis.from_url(cluster.store.url) as client:
        client.delete(f"hr:celery:{name}")
        client.set(f"hr:celery:{name}", "a string")
        answer = await asyncio.to_thread(send(app, body(f"after {name}")).get, LIMIT_S)
        assert answer["object"] == "chat.completion"
        assert client.type(f"hr:celery:{name}") != b"string"
    assert [process.pid for process in cluster.tasks] == before
