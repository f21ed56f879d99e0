"""gRPC servers of the API, of text and of tensors, on free ports, and a client of each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tritonclient.grpc.aio import InferenceServerClient

from shared.backend import Backend
from shared.settings import Settings
from tests.support.grpc_client import Client, serving
from tests.support.scripted_worker import ScriptedWorker
from tests.support.tensor_api import TensorApi, in_memory, over_grpc


@pytest.fixture
async def worker(backend: Backend) -> ScriptedWorker:
    scripted = ScriptedWorker(backend)
    await scripted.announce()
    return scripted


@pytest.fixture
async def client(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[Client]:
    async with serving(settings, backend) as (_, made):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tensors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TensorApi]:
    async with over_grpc(in_memory(tmp_path_factory.mktemp("data"))) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tensors: TensorApi) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(tensors.host) as opened:
        yield opened
