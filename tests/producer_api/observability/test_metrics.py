"""The number of series of an API process, and what it counts of queues and refusals."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.observability.request_log import RequestFacts, RequestLogger
from producer_api.routes.metrics import metrics
from producer_api.services import Context
from shared.accounts.scopes import Scopes
from shared.errors import PermissionDenied, Unavailable
from shared.queue.interface import QueueDepth
from tests.support.api_server import administering
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker

JUNK = 40  # requests with other names each over HTTP; a count of series needs no more


def _series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


async def _send_junk(client: httpx.AsyncClient, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "x"}], "user": name}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 404
    assert (await client.get(f"/{name}")).status_code == 404
    assert (await client.get(f"/v1/jobs/{name}")).status_code == 404
    assert (await client.request(name.upper(), "/v1/chat/completions")).status_code == 405
    assert (await client.request(name.upper(), f"/{name}")).status_code == 404


async def test_junk_adds_no_series(app: FastAPI, client: httpx.AsyncClient) -> None:
    context: Context = app.state.context
    await _send_junk(client, "junk")
    before = _series(context.metrics.registry)
    for number in range(JUNK):
        await _send_junk(client, f"junk{number}")
    assert _series(context.metrics.registry) == before


@pytest.mark.usefixtures("worker")
async def test_twenty_thousand_methods_and_users_add_no_series(app: FastAPI) -> None:
    context: Context = app.state.context
    logger: RequestLogger = context.request_logger

    def write(number: int) -> None:
        facts = RequestFacts(Client(f"10.0.0.{number}", f"r{number}"), 0.0, refusal="not_found")
        logger.write(facts, method=f"FOO{number}", route="", status=404, quiet=True)

    write(0)
    before = _series(context.metrics.registry)
    for number in range(20_000):
        write(number)
    assert _series(context.metrics.registry) == before
    assert (
        context.metrics.registry.get_sample_value("headrace_api_refusals_total", {"reason": "not_found"}) == 20_001
    )


async def test_refusals_are_counted_by_code(app: FastAPI, client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/jobs", json={"model": "none", "prompt": "x"})).status_code == 404
    assert (await client.post("/v1/jobs", json={"model": MODEL})).status_code == 400
    sample = app.state.context.metrics.registry.get_sample_value
    assert sample("headrace_api_refusals_total", {"reason": "model_not_found"}) == 1
    assert sample("headrace_api_refusals_total", {"reason": "invalid_request"}) == 1


async def test_requests_sent_again_are_counted(
    app: FastAPI, client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    headers = {"idempotency-key": "k"}
    for prompt, status in (("x", 202), ("x", 202), ("y", 422)):
        response = await client.post("/v1/jobs", json={"model": MODEL, "prompt": prompt}, headers=headers)
        assert response.status_code == status, response.text
    sample = app.state.context.metrics.registry.get_sample_value
    assert sample("headrace_api_duplicates_total", {"outcome": "joined"}) == 1
    assert sample("headrace_api_duplicates_total", {"outcome": "conflict"}) == 1


async def test_an_unknown_wait_is_not_shown(app: FastAPI) -> None:
    shown_by = app.state.context.metrics
    for wait in (2.5, None):
        shown_by.show_queues({MODEL: QueueDepth(3, 30, 1, 4.0, wait)})
        shown = shown_by.registry.get_sample_value("headrace_queue_wait_estimate_seconds", {"model": MODEL})
        assert shown == wait


async def test_what_redis_said_is_not_shown_while_it_is_away(
    app: FastAPI, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    context: Context = app.state.context

    async def away() -> None:
        raise Unavailable("away")

    async with administering(app) as admin:
        shown = (await admin.get("/metrics")).text
        monkeypatch.setattr(context.catalog, "models", away)
        hidden = (await admin.get("/metrics")).text
    for family in ("headrace_queue_waiting", "headrace_queue_paused", "headrace_workers"):
        assert f'{family}{{model="{MODEL}"' in shown
        assert f"{family}{{" not in hidden
    assert "headrace_api_redis_up 0.0" in hidden


async def test_a_key_of_some_models_may_not_read_the_metrics_of_all(app: FastAPI) -> None:
    scopes = Scopes.parse(admin=True, models=[MODEL])
    with pytest.raises(PermissionDenied, match="all models"):
        await metrics(app.state.context, Principal("ops", scopes=scopes))
    assert (await metrics(app.state.context, Principal("ops", scopes=Scopes(admin=True)))).status_code == 200
