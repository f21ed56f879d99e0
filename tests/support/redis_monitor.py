"""Commands that the users of a Redis server run, as its MONITOR shows them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace.doctor.redis_acl import Role
from shared.redis.client import RedisServer
from shared.redis.wire import connect
from tests.support.redis_servers import HOST, Node
from tests.support.waiting import LIMIT_S


class Commands:
    """Commands of each user, from MONITOR. A script's commands are its caller's; the worker uses the socket."""

    def __init__(self) -> None:
        self.by: dict[Role, set[str]] = {"api": set(), "worker": set()}
        self._caller: Role = "api"

    def note(self, line: str) -> None:
        found = re.match(r'[\d.]+ \[\d+ (\S+)\] "([^"]+)"(?: "([^"]*)")?', line)
        if found is None:
            return
        address, command, sub = found[1], found[2].lower(), found[3] or ""
        if address != "lua":
            self._caller = "worker" if address.startswith("unix:") else "api"
        name = f"{command}|{sub.lower()}" if command in {"xgroup", "xinfo", "script", "client"} else command
        if name not in {"auth", "echo", "hello", "client|setinfo"}:  # always allowed, or run by the administrator
            self.by[self._caller].add(name)


@asynccontextmanager
async def monitored(node: Node) -> AsyncIterator[Commands]:
    server = RedisServer.connect(f"redis://admin:root@{HOST}:{node.port}", timeout=5)
    connection = await connect(server.client.connection_pool)
    found, ended = Commands(), asyncio.Event()

    async def listen() -> None:
        while not ended.is_set():
            line = (await connection.read_response()).decode()
            found.note(line)
            if '"ECHO" "the end"' in line:
                ended.set()

    await connection.send_command("MONITOR")
    listening = asyncio.create_task(listen())
    try:
        yield found
        node.call("ECHO", "the end")
        await asyncio.wait_for(ended.wait(), LIMIT_S)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await connection.disconnect()
        await server.client.aclose()
