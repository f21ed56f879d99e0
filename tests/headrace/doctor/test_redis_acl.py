"""The users of docs/redis.md: each process runs with the permissions of its ACL line, and needs all of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import msgspec
import pytest
from celery import Celery

from headrace.doctor.redis_acl import COMMANDS, Role, acl_rule, missing_commands
from producer_api.app import create_app
from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.errors import Unavailable
from shared.ledger.store import Ledger, Refused
from shared.ledger.types import Charge, End, Entry, Limit
from shared.models.worker_registry import RedisRegistry, WorkerInfo
from shared.queue.interface import Room
from shared.runtime.sockets import free_port
from shared.settings import Settings
from shared.token_log.interface import Adoption
from shared.webhooks.interface import Hook, Webhook
from tests.support.api_server import administering, chat, serving
from tests.support.batch_client import BatchClient, line
from tests.support.fakes import MODEL, lapse, make_request
from tests.support.node import Node as Process
from tests.support.redis_monitor import monitored
from tests.support.redis_servers import HOST, Node, opened, running, settings_for
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import GatedEngine, Harness

DOCS = Path(__file__).parents[3] / "docs" / "redis.md"
ROLES: tuple[Role, ...] = ("api", "worker")
# Allowed, and not used by the test below: the sweeper removes consumers of workers that are long gone, and repairs
# what another program damaged; a worker looks at the life of a claim that disagrees with its own.
RARE: dict[Role, set[str]] = {
    "api": {"hkeys", "hsetnx", "pttl", "xack", "xclaim", "xdel", "xgroup|create", "xgroup|delconsumer"},
    "worker": {"pttl"},
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    socket = f"unixsocket {tmp_path}/v.sock"
    made = Node(tmp_path / "node", socket, "user default off", "user admin on >root ~* &* +@all")
    made.credentials = {"username": "admin", "password": "root"}
    with running(made):
        for role in COMMANDS:
            made.call(*acl_rule(role).replace("PASSWORD", "secret").split())
        yield made


def settings_of(node: Node, role: Role, folder: Path) -> Settings:
    user = f"headrace-{role}:secret"
    url = f"unix://{user}@{folder}/v.sock" if role == "worker" else f"redis://{user}@{HOST}:{node.port}/0"
    given = {"redis_timeout": 30, "lease": LIMIT_S, "queue_depth": 3, "max_attempts": 1, "grace": 0}
    return settings_for(url, folder, routing="round-robin", **given)


async def run_everything(api: Backend, worker: Backend, api_settings: Settings, worker_settings: Settings) -> None:
    """Fill the queue, cancel waiting and running jobs, lose a worker, drain another, and read all answers."""
    info = WorkerInfo(id="w", pid=1, model=MODEL, state="ready", max_model_len=8192)
    await api.start()
    await worker.start()
    await worker.registry.beat(info)
    assert worker.server is not None
    await RedisRegistry(worker.server, lease=0.05).beat(WorkerInfo(id="gone", pid=1, model=MODEL, state="ready"))
    harness = Harness(worker, worker_settings)
    async with (
        serving(api_settings, api) as url,
        administering(create_app(api_settings, api)) as admin,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
    ):
        jobs = [await submit(http, headers) for headers in ({}, {}, {"x-headrace-ttft-target-ms": "60000"})]
        assert (await post(http, "/v1/jobs", prompt="x")).status_code == 503  # full
        assert (await http.delete(f"/v1/jobs/{jobs[0]}")).json().get("state") == "cancelled"
        assert "headrace" in (await admin.get("/metrics")).text
        assert (await http.get(f"/v1/jobs/{jobs[2]}")).json()["state"] == "queued"
        assert (await admin.get(f"/admin/scaling/{MODEL}")).status_code == 200
        assert (await http.get(f"/v1/jobs/{jobs[2]}/timeline")).status_code == 200
        await lose_worker(worker, 2)
        await administer(admin)
        await lapse(worker)
        await sweep_overdue(api, http)
        await use_webhooks(api)
        await use_ledger(api, api_settings)
        await sleep_and_wake(admin, worker, msgspec.structs.replace(info, state="sleeping"))
        async with harness.worker(name="a"):
            assert "request_abandoned" in (await http.get(f"/v1/jobs/{jobs[1]}/events")).text
            assert "[DONE]" in (await post(http, "/v1/chat/completions", **chat(stream=True, max_tokens=4))).text
            for path in ("/ready", "/v1/models", f"/v1/jobs/{jobs[1]}"):
                assert (await http.get(path)).status_code == 200
            await use_dead_letters(http, jobs[1])
        engine = GatedEngine(limit=0)
        async with harness.worker(engine, name="b"):
            running_job, handed_over = await submit(http, max_tokens=5000), await submit(http, max_tokens=500)
            stepping = asyncio.create_task(step_slowly(engine))
            for job in (running_job, handed_over):
                await first_token(http, job)
            stepping.cancel()
            await http.delete(f"/v1/jobs/{running_job}")
            assert "event: cancelled" in (await http.get(f"/v1/jobs/{running_job}/events")).text
        async with harness.worker(name="c"):
            assert "event: done" in (await http.get(f"/v1/jobs/{handed_over}/events")).text
    await take_from_topic(worker, worker_settings)
    await worker.registry.leave("w")


async def take_from_topic(worker: Backend, settings: Settings) -> None:
    """Queue a request as the intake of a topic does, and look at a queue as the worker of a repository does."""
    taken = make_request()
    await worker.token_log.adopt([Adoption(taken, "t/0/0", create=True)], "hr:notify:w")
    assert worker.limits is not None
    await Ledger.from_settings(settings, worker.limits).charge(Charge(taken.id, Entry("default", MODEL), ()))
    await worker.transport.publish_many([taken, make_request()])
    await worker.transport.depth(MODEL)
    await worker.token_log.read(taken.id)


async def administer(admin: httpx.AsyncClient) -> None:
    """Pause, look at and resume the queue while requests wait and are held."""
    assert (await admin.post(f"/admin/queues/{MODEL}/tenants/default/pause")).status_code == 200
    for path in ("overview", f"queues/{MODEL}", "requests", "audit"):
        assert (await admin.get(f"/admin/{path}")).status_code == 200
    assert (await admin.post(f"/admin/queues/{MODEL}/tenants/default/resume")).status_code == 200


async def sleep_and_wake(admin: httpx.AsyncClient, worker: Backend, info: WorkerInfo) -> None:
    for command in ("sleep", "wake"):
        assert (await admin.post(f"/admin/models/{MODEL}/{command}")).status_code == 200
        assert (await worker.registry.asleep() == {MODEL}) is (command == "sleep")
    await worker.registry.beat(info)


async def sweep_overdue(api: Backend, http: httpx.AsyncClient) -> None:
    """Let the sweeper of the API end an overdue job while no worker runs."""

    async def models() -> list[str]:
        return [MODEL]

    late = await submit(http, timeout=0.1)
    sweeper = Sweeper(api, models)
    running = asyncio.create_task(sweeper.run())
    try:
        assert "deadline" in (await http.get(f"/v1/jobs/{late}/events")).text
        await sweeper.sweep(tidy=True)  # the running one may be cancelled in its first round
        await sweeper.end_lost()
        await sweeper.reconcile()
    finally:
        running.cancel()


async def use_webhooks(api: Backend) -> None:
    """Run every operation of the webhook store."""
    for name in ("a", "b"):
        await api.webhooks.add(Webhook(id=name, hook=Hook("https://example.com"), created_at=0.0), 60)
        await api.webhooks.wake(name)
    delivered, dropped = await api.webhooks.claim(9, 60)
    await api.webhooks.wake("a")
    assert await api.webhooks.update(delivered, delivered.webhook, 60)
    [delivered] = await api.webhooks.claim(1, 60)
    assert await api.webhooks.update(delivered, delivered.webhook, None)
    await api.webhooks.drop(dropped)
    assert await api.webhooks.get("a") is not None


async def use_ledger(api: Backend, settings: Settings) -> None:
    """Charge requests under every kind of limit, settle them, and mark them as written."""
    assert api.limits is not None
    ledger = Ledger.from_settings(settings, api.limits)
    for strategy in ("fixed-window", "sliding-window-counter", "moving-window", "token-bucket", "day", "slots"):
        limits = [Limit(strategy, strategy, 1, 3_600_000, 1, 1)]
        for name, tokens in (("a", None), ("b", 9)):
            await ledger.charge(Charge(name, Entry("default", MODEL), limits))
            if tokens is None:
                with pytest.raises(Refused):
                    await ledger.charge(Charge("c", Entry("default", MODEL), limits))
            await ledger.settle([(name, tokens, None)])
            await ledger.look(limits)
        passing = [Limit(strategy, f"{strategy} passing", 1, 100, 1)]
        await ledger.charge(Charge("p", Entry("default", MODEL), passing))
        await ledger.settle([("p", 1, None)])
        while (await ledger.look(passing))[0].remaining < 1:
            await asyncio.sleep(0.02)
    await ledger.charge(Charge("d", Entry("default", MODEL), []))
    await ledger.settle([("d", 1, End("completed", "stop", 1, 0, 1.0, None, None, 2.0))])
    await ledger.claim(1)
    await ledger.written(["d"])


async def use_dead_letters(http: httpx.AsyncClient, job: str) -> None:
    """List and read the dead letters, replay one, and delete the others."""
    for path in ("", f"/{job}", f"?after={job}"):
        assert (await http.get(f"/v1/dead-letters{path}")).status_code == 200
    again = await http.post(f"/v1/dead-letters/{job}/replay", headers={"idempotency-key": "k"})
    assert "event: done" in (await http.get(f"/v1/jobs/{again.json()['id']}/events")).text
    assert (await http.delete("/v1/dead-letters")).status_code == 200


async def submit(http: httpx.AsyncClient, headers: Mapping[str, str] | None = None, **body: object) -> str:
    job = {"model": MODEL, "prompt": "x", "max_tokens": 5, **body}
    response = await http.post("/v1/jobs", json=job, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()["id"]


async def post(http: httpx.AsyncClient, path: str, **body: object) -> httpx.Response:
    return await http.post(path, json={"model": MODEL, **body})


async def step_slowly(engine: GatedEngine) -> None:
    """Advance one token every 10 ms, so that no job ends before the test has seen it."""
    while True:
        engine.limit = 1
        await asyncio.sleep(0.01)


async def first_token(http: httpx.AsyncClient, job: str) -> None:
    async with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("event: token"):
                return


async def lose_worker(worker: Backend, number: int) -> None:
    """Take requests for a worker that then disappears."""
    held = (await worker.transport.pull(MODEL, "dead", Room.all(number))).found
    await worker.token_log.acquire([item.request.id for item in held], "dead")


def test_the_documented_acl_lines_match() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    assert [acl_rule(role) for role in COMMANDS] == [line for line in lines if line.startswith("ACL SETUSER")]


@pytest.mark.slow
async def test_api_and_worker_need_exactly_their_permissions(node: Node, tmp_path: Path) -> None:
    api_settings, worker_settings = (settings_of(node, role, tmp_path) for role in ROLES)
    async with opened(api_settings) as api, opened(worker_settings) as worker:
        async with monitored(node) as commands:
            await asyncio.wait_for(run_everything(api, worker, api_settings, worker_settings), LIMIT_S)
        used = commands.by
    for role in ROLES:
        assert sorted(set(COMMANDS[role]) - used[role] - RARE[role]) == [], f"not needed by the {role}"
        assert sorted(used[role] - set(COMMANDS[role])) == []
    with node.admin() as admin:
        assert admin.acl_log() == []


@pytest.mark.slow
async def test_a_batch_and_a_task_run_with_the_three_users(node: Node, tmp_path: Path) -> None:
    """Given each process with its own user, expect a batch and a task to run without a refused command."""
    common = {"model": "scripted", "lease": 1, "grace": 0, "log_format": "json", "files_dir": tmp_path / "files"}
    port = free_port(HOST)
    processes = []
    for role, ready in (("api", "listening"), ("worker", "worker_ready"), ("tasks", "tasks_ready")):
        url = f"redis://headrace-{role}:secret@{HOST}:{node.port}/0"
        own = {f"HEADRACE_{name.upper()}": str(value) for name, value in common.items()}
        environment = {**own, "HEADRACE_REDIS_URL": url, "HEADRACE_PORT": str(port)}
        processes.append(Process(role, sys.executable, [role], environment, ready, tmp_path / f"{role}.log"))
    try:
        for process in processes:
            await process.start()
        client = BatchClient(f"http://{HOST}:{port}")
        made = await asyncio.to_thread(client.start, [line(f"c{number}") for number in range(100)])
        async with asyncio.timeout(LIMIT_S):
            while (await asyncio.to_thread(client.sdk.batches.retrieve, made.id)).status != "completed":
                await asyncio.sleep(0.05)
        admin = f"redis://admin:root@{HOST}:{node.port}/0"
        prefix = {"global_keyprefix": "hr:celery:"}
        user = Celery("user", broker=admin, backend=admin, set_as_current=False)
        user.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
        sent = user.send_task("headrace.generate", (line("x")["body"],), queue="headrace")
        assert (await asyncio.to_thread(sent.get, 20))["object"] == "chat.completion"
        assert await processes[-1].stop() == 0
    finally:
        for process in processes:
            if process.running:
                process.kill()
    with node.admin() as admin_client:
        assert admin_client.acl_log() == []


@pytest.mark.slow
@pytest.mark.parametrize(("role", "taken"), [("api", "xadd"), ("api", "subscribe"), ("worker", "publish")])
async def test_a_missing_permission_fails(node: Node, tmp_path: Path, role: Role, taken: str) -> None:
    node.call("ACL", "SETUSER", f"headrace-{role}", f"-{taken}")
    api_settings, worker_settings = (settings_of(node, role, tmp_path) for role in ROLES)
    async with opened(api_settings) as api, opened(worker_settings) as worker:
        with pytest.raises((AssertionError, Unavailable, TimeoutError, ExceptionGroup)):
            await asyncio.wait_for(run_everything(api, worker, api_settings, worker_settings), 3)


@pytest.mark.parametrize("role", COMMANDS)
async def test_missing_commands_are_reported(node: Node, tmp_path: Path, role: Role) -> None:
    async with opened(settings_of(node, role, tmp_path)) as backend:
        assert await missing_commands(backend.redis, role) == []
        for command in COMMANDS[role]:
            node.call("ACL", "SETUSER", f"headrace-{role}", f"-{command}")
            assert await missing_commands(backend.redis, role) == [command]
            node.call("ACL", "SETUSER", f"headrace-{role}", f"+{command}")
        node.call("ACL", "SETUSER", f"headrace-{role}", "resetkeys", "resetchannels")
        assert {"xadd", "publish"} <= set(await missing_commands(backend.redis, role))
        assert node.call("DBSIZE") == 0  # the check changed nothing
