"""A server for tensors that a module's tests share, and Triton's client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tritonclient.http.aio import InferenceServerClient

from tests.support.tensor_api import TensorApi, in_memory, over_http


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tensors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TensorApi]:
    async with over_http(in_memory(tmp_path_factory.mktemp("data"))) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tensors: TensorApi) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(tensors.host) as opened:
        yield opened
