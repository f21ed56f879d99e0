"""The ends of requests reach all that wait for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from producer_api.auth.principal import Principal
from producer_api.batch_runner.completion_listener import CompletionListener
from producer_api.batch_runner.line_body import CHAT, read_body
from producer_api.batch_runner.run_request import run
from producer_api.batch_runner.services import BatchServices
from shared.backend import Backend
from shared.protocol import line_job_id
from tests.support.batch_client import line


async def test_each_of_several_callers_learns_of_an_end(backend: Backend) -> None:
    """A process may run a line twice, if a chunk is claimed again while it still works on it."""
    listener = CompletionListener(backend.token_log, backend.live)
    with listener.waiting_for("gone") as first:
        with listener.waiting_for("gone"):
            pass
        with listener.waiting_for("gone") as second:
            first.admitted = second.admitted = True
            await listener.check(["gone"])
        assert first.ended.done()
        assert second.ended.done()


async def test_a_request_that_is_not_admitted_yet_has_not_expired(
    services: BatchServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a check for lost messages before the request has a log."""
    submit = services.gateway.submit_derived

    async def submit_after_check(*args: Any, job_id: str, **options: Any) -> Any:
        await services.completions.check([job_id])
        return await submit(*args, job_id=job_id, **options)

    monkeypatch.setattr(services.gateway, "submit_derived", submit_after_check)
    body = read_body(CHAT, json.dumps(line("a")["body"]).encode(), "default", strict_fields=False)
    answer = await run(services, body, job_id=line_job_id("task", 0), seed=1, principal=Principal("default"))
    assert answer.choices[0].finish_reason == "length"
