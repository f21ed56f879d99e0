"""Connections to the master that Sentinels name; each new connection asks them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Connection, ConnectionPool, SSLConnection

from shared.redis.multiplexer import Pipe
from shared.redis.node import Client, noticing, pack
from shared.redis.single_flight import Shared, first_answer
from shared.redis.url import Host


class Sentinels:
    """Lookup of the master at all Sentinels at once; the first answer is used.

    Args:
        service: the master's name at the Sentinels.
        options: redis-py's arguments for a connection to a Sentinel.
        timeout: seconds that finding the master may take.
    """

    def __init__(
        self, hosts: Sequence[Host], service: str, options: Mapping[str, Any], *, tls: bool, timeout: float
    ) -> None:
        self._service = service
        self._timeout = timeout
        kind = noticing(SSLConnection if tls else Connection)
        self._sentinels = [
            Pipe(ConnectionPool(kind, host=host, port=port, **options), timeout) for host, port in hosts
        ]
        self._master = Shared(self._find)

    async def master(self) -> Host:
        """Return the master's address. Raises redis' ConnectionError if no Sentinel knows the service."""
        return await self._master()

    async def _find(self) -> Host:
        return await first_answer([self._ask(sentinel) for sentinel in self._sentinels], self._timeout)

    async def _ask(self, sentinel: Pipe) -> Host | None:
        [found] = await sentinel.exchange([pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)])
        if isinstance(found, Exception):
            raise found
        return (found[0].decode(), int(found[1])) if found else None

    async def close(self) -> None:
        await self._master.stop()
        for sentinel in self._sentinels:
            await sentinel.close()


class Master(Client):
    """Client of the master that `sentinels` name; the pipe's pool makes MasterConnections."""

    def __init__(self, pipe: Pipe, sentinels: Sentinels) -> None:
        super().__init__(pipe)
        self.sentinels = sentinels

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        await self.sentinels.close()
