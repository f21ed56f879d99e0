"""Cluster on one machine, as a user runs it: a Valkey, API replicas and workers, each a process that can fail.

This is the only module that starts the server under test.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis

from shared.redis import keys
from shared.redis.embedded import HOST, EmbeddedServer
from shared.runtime.sockets import free_ports
from tests.support.node import POLL_S, Node
from tests.support.proxy import FaultProxy
from tests.support.stream_client import Client
from tests.support.waiting import LIMIT_S

ROLES = ("api", "worker")
IMPORTS = {
    "api": ("producer_api.server",),
    "worker": ("workers.main",),
    "tasks": ("producer_api.batch_runner.process",),
}
ENGINE_IMPORTS = {"native": ("workers.engine.engine",), "vllm": ("workers.runtimes.vllm.start",)}
WORKER_READY = "worker_ready"


class Cluster:
    """Running processes, on which tests inject faults. Use `running`.

    Attributes:
        store: the Valkey.
        apis, workers, tasks: the other processes.
        links: proxies between the processes of a role and the store, if asked for.
    """

    def __init__(self, folder: Path, appendfsync: str) -> None:
        self.folder = folder
        self.store = EmbeddedServer(folder / "valkey", appendfsync=appendfsync)
        self.apis: list[Node] = []
        self.workers: list[Node] = []
        self.tasks: list[Node] = []
        self.urls: list[str] = []
        self.links: dict[str, FaultProxy] = {}

    @property
    def client(self) -> Client:
        return Client(self.urls)

    @property
    def nodes(self) -> list[Node]:
        return self.apis + self.workers + self.tasks

    def subscriptions(self) -> int:
        """Return the number of channels with subscribers."""
        with self._redis() as store:
            return len(store.pubsub_channels())

    def store_size(self) -> tuple[int, int]:
        """Return the store's number of keys, and its memory in bytes. Raises redis.RedisError while it is down."""
        with self._redis() as store:
            return store.dbsize(), store.info("memory")["used_memory"]

    def requests(self) -> set[str]:
        """Return the ids of all jobs in the store, finished or not."""
        with self._redis() as store:
            found = store.scan_iter("hr:{req_*", count=1000)
            return {key.decode().split("{")[1].split("}")[0] for key in found}

    def expire_webhook(self, webhook_id: str) -> None:
        """End the lease of the process that sends a webhook, or its wait for the next attempt."""
        with self._redis() as store:
            store.zadd(keys.WEBHOOKS_DUE, {webhook_id: 0}, xx=True)

    def _redis(self) -> redis.Redis:
        """Connect to the store without a proxy."""
        return redis.Redis.from_url(self.store.url)

    async def restart_store(self) -> None:
        """Start the store again after it has ended; the other processes keep running."""
        await asyncio.to_thread(self.store.start)

    @asynccontextmanager
    async def reviving(self) -> AsyncIterator[None]:
        """While the body runs, restart every process that ends, as a supervisor does."""

        async def revive() -> None:
            while True:
                if self.store.pid is None:
                    await self.restart_store()
                for node in self.nodes:
                    if not node.running:
                        node.spawn()
                await asyncio.sleep(POLL_S)

        task = asyncio.create_task(revive())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def add(
        self,
        role: str,
        environment: Mapping[str, str],
        *,
        python: str = sys.executable,
        limit: float = LIMIT_S,
        worker_ready: str = WORKER_READY,
    ) -> Node:
        """Add a process, without starting it.

        Args:
            python: the interpreter that runs it.
            limit: seconds that its start may take.
            worker_ready: log event by which a worker reports that it is ready.
        """
        siblings, ready = {
            "api": (self.apis, "listening"),
            "worker": (self.workers, worker_ready),
            "tasks": (self.tasks, "tasks_ready"),
        }[role]
        name = f"{role}-{len(siblings) + 1}"
        log = self.folder / f"{name}.log"
        siblings.append(
            Node(name, python, [role], environment, ready, log, limit=limit, imports=_imports(role, environment))
        )
        return siblings[-1]


def _imports(role: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return modules that a process imports before it is ready."""
    if role != "worker" or environment["HEADRACE_MODEL"] == "scripted":
        return IMPORTS[role]
    return (*IMPORTS[role], *ENGINE_IMPORTS.get(environment.get("HEADRACE_RUNTIME", "native"), ()))


@asynccontextmanager
async def running(
    folder: Path,
    *,
    apis: int = 2,
    workers: int = 2,
    appendfsync: str = "everysec",
    proxied: bool = False,
    environment: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    worker_python: str = sys.executable,
    start_limit: float = LIMIT_S,
    worker_ready: str = WORKER_READY,
    **settings: Any,
) -> AsyncIterator[Cluster]:
    """Run a cluster until the body ends, and yield it once all its processes are ready.

    Args:
        proxied: put one FaultProxy between the APIs and the store, and one between the workers and the store.
        environment: additional environment variables by role.
        worker_python: the interpreter of the workers.
        start_limit: seconds that the start of a process may take.
        worker_ready: log event by which a worker reports that it is ready.
        settings: settings of all processes.
    """
    cluster = Cluster(folder, appendfsync)
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        cluster.store.start()
        stack.callback(cluster.store.stop)
        ports = dict.fromkeys(ROLES, cluster.store.port)
        for role in ROLES if proxied else ():
            link = FaultProxy(HOST, cluster.store.port)
            cluster.links[role] = await stack.enter_async_context(link.listening())
            ports[role] = link.port
        common = {"model": "scripted", "lease": 1, "grace": 5, "keepalive": 1, "log_format": "json", **settings}
        stack.callback(_end, cluster)
        listening = free_ports(HOST, apis)
        cluster.urls += [f"http://{HOST}:{port}" for port in listening]
        for role, port in [*(("api", port) for port in listening), *[("worker", 0)] * workers]:
            own = {"redis_url": _at_port(cluster.store, ports[role]), "port": port}
            variables = {f"HEADRACE_{name.upper()}": str(value) for name, value in (common | own).items()}
            python = worker_python if role == "worker" else sys.executable
            added = variables | dict(environment.get(role, {}))
            cluster.add(role, added, python=python, limit=start_limit, worker_ready=worker_ready).spawn()
        await asyncio.gather(*(node.serving() for node in cluster.nodes))
        yield cluster


def _at_port(store: EmbeddedServer, port: int) -> str:
    return store.url.replace(f":{store.port}/", f":{port}/")


def _end(cluster: Cluster) -> None:
    for node in cluster.nodes:
        if node.running:
            node.kill()
