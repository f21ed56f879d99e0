"""The objects of an API process, at its start."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from producer_api.app import create_app
from producer_api.observability.metrics import Metrics
from producer_api.services import Context
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import administering
from tests.support.fakes import MODEL, make_request


async def test_policies_of_unknown_models_are_reported(backend: Backend, settings: Settings) -> None:
    routing = {MODEL: "round-robin", "chta": "prefix-aware"}
    given = settings.model_copy(update={"model_routing": routing})
    context = Context.from_settings(given, backend, Metrics(CollectorRegistry()))
    with capture_logs() as logs:
        await context.start()
    await context.close()
    [line] = [line for line in logs if line["event"] == "unknown_models_in_model_routing"]
    assert (line["models"], line["known"], line["log_level"]) == (["chta"], [MODEL], "warning")


async def test_metrics_count_routed_requests(backend: Backend, settings: Settings) -> None:
    given = settings.model_copy(update={"routing": "round-robin"})
    routed = Backend.open(given)
    await routed.transport.publish(make_request())
    async with administering(create_app(given, routed)) as admin:
        shown = (await admin.get("/metrics")).text
    assert f'routed_requests_total{{model="{MODEL}",outcome="unaimed",policy="round-robin"}} 1.0' in shown
    await routed.close()
