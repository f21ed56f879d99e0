"""API in this process with a worker that serves models of tensors, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from shared.backend import Backend
from shared.settings import Settings, load
from tests.support import api_server, grpc_client
from tests.support.tensor_worker import TensorWorker, working
from tests.support.waiting import LIMIT_S


@dataclass(frozen=True)
class TensorApi:
    """`host` is the address as tritonclient takes it, of HTTP or of gRPC."""

    host: str
    worker: TensorWorker
    http: httpx.AsyncClient | None = None

    @property
    def backend(self) -> Backend:
        return self.worker.backend


def in_memory(data: Path) -> Settings:
    """Return settings of an API without Redis, whose files go to a folder."""
    given = {"port": 0, "data_dir": data, "model": "scripted", "lease": LIMIT_S}
    return load(given).settings


@asynccontextmanager
async def over_http(settings: Settings) -> AsyncIterator[TensorApi]:
    backend = Backend.memory(settings)
    async with (
        working(backend) as worker,
        api_server.serving(settings, backend) as url,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
    ):
        yield TensorApi(url.removeprefix("http://"), worker, http)


@asynccontextmanager
async def over_grpc(settings: Settings) -> AsyncIterator[TensorApi]:
    backend = Backend.memory(settings)
    async with working(backend) as worker, grpc_client.serving(settings, backend) as (_, client):
        yield TensorApi(f"{settings.host}:{client.port}", worker)
