"""langchain-openai and litellm as clients: chat, streams, completions and embeddings."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.support.fakes import EMBEDDER, MODEL
from tests.support.waiting import LIMIT_S


@pytest.mark.slow
@pytest.mark.parametrize("package", ["langchain", "litellm"])
async def test_a_framework_works_unchanged(package: str, api: str) -> None:
    command = [sys.executable, "-m", "tests.sdk.frameworks", package, api, MODEL, EMBEDDER]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(LIMIT_S):
            _, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, stderr.decode()[-2000:]
