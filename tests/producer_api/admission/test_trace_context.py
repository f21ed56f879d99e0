import asyncio

import pytest

from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import calling, chat
from tests.support.scripted_worker import ScriptedWorker

VALID = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(("given", "carried"), [(VALID, VALID), (f"00-{'0' * 32}-{'b' * 16}-01", "")])
async def test_a_queued_request_carries_the_clients_valid_trace_context(
    given: str, carried: str, settings: Settings, backend: Backend
) -> None:
    worker = ScriptedWorker(backend)
    await worker.announce()
    async with calling(create_app(settings, backend)) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat(), headers={"traceparent": given}))
        request = await worker.answer("hello")
        assert (await asked).status_code == 200
    assert request.traceparent == carried
