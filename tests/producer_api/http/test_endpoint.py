"""Declarations of endpoints, and which of them a request is matched to."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from starlette.requests import Request
from starlette.responses import Response

from producer_api.app import create_app
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.endpoint_table import EndpointTable
from producer_api.http.errors import NATIVE, OPENAI, OpenAIErrors
from producer_api.routes.catalog import ADMIN, API
from producer_api.routes.chat import parse_chat
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import InvalidRequest
from shared.settings import Settings
from tests.support.api_server import calling
from tests.support.metered import changed

JOB = "/v1/jobs/{job_id}"


async def answer(request: Request, tenant: str, job_id: str) -> Response:
    return Response(f"{tenant} {job_id}")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"group": "anything"}, "group 'anything' is not one of"),
        ({"group": None}, r"parameters \['tenant'\] are not known"),
        ({"path": "/v1/jobs"}, r"parameters \['job_id'\] are not known"),
        ({"path": "/v1/jobs/{job_id}/{number}"}, "does not take"),
        ({"method": "PATCH"}, "method must be one of"),
        ({"summary": "See a job"}, "needs a response"),
    ],
)
def test_a_wrong_declaration_is_refused(changes: dict[str, Any], reason: str) -> None:
    declared: dict[str, Any] = {"method": "GET", "path": JOB, "handler": answer, "group": "jobs"}
    Endpoint(**declared)
    with pytest.raises(AssertionError, match=reason):
        Endpoint(**declared | changes)


async def versioned(name: str, version: str = "") -> Response:
    return Response(f"{name} {version}")


def test_a_parameter_with_a_default_is_passed_if_the_path_has_it() -> None:
    for path, names in (("/m/{name}", {"name"}), ("/m/{name}/v/{version}", {"name", "version"})):
        assert Endpoint("GET", path, versioned, group=None).handler_parameters == names


def test_an_endpoint_declared_twice_is_refused() -> None:
    once = Endpoint("GET", JOB, answer, group="jobs")
    with pytest.raises(AssertionError, match="is declared twice"):
        EndpointTable([once, once])


def test_a_request_is_matched_by_method_and_path() -> None:
    table = EndpointTable(API)
    for method, path, template, parameters in (
        ("POST", "/v1/chat/completions", "/v1/chat/completions", {}),
        ("GET", "/v1/jobs/req_1", JOB, {"job_id": "req_1"}),
        ("DELETE", "/v1/jobs/req_1", JOB, {"job_id": "req_1"}),
        ("GET", "/v1/models/org/name", "/v1/models/{name:path}", {"name": "org/name"}),
        ("GET", "/v1/models/org//name/", "/v1/models/{name:path}", {"name": "org/name"}),
        ("GET", "//v1///jobs/req_1//", JOB, {"job_id": "req_1"}),
        ("GET", "//", "/", {}),
    ):
        found = table.match(method, path)
        assert found.endpoint is not None, path
        assert (found.endpoint.method, found.template, found.path_params) == (method, template, parameters)
    assert table.match("HEAD", JOB) == table.match("GET", JOB)
    other = table.match("POST", "/v1/jobs/req_1")
    assert (other.endpoint, other.template, other.allowed) == (None, JOB, ("GET", "DELETE", "HEAD", "OPTIONS"))
    unknown = table.match("GET", "/v1/jobs/req_1/nothing")
    assert (unknown.endpoint, unknown.template) == (None, "")


@pytest.mark.parametrize(
    ("path", "format_name"),
    [
        ("/v1/nothing", "OpenAIError"),
        ("/v1/responses/resp_1/nothing", "OpenAIError"),
        ("/tokenize/nothing", "OpenAIError"),
        ("/v1/jobs/req_1/nothing", "Problem"),
        ("/v1/dead-letters/x/y/z", "Problem"),
        ("/nothing", "Problem"),
        ("//v1//nothing/", "OpenAIError"),
        ("/%00" * 5000, "Problem"),
    ],
)
def test_an_unknown_path_has_its_neighbours_errors(path: str, format_name: str) -> None:
    found = EndpointTable(API).match("GET", path)
    assert (found.endpoint, found.errors.schema) == (None, format_name)


def test_the_admin_port_speaks_problems_except_in_protocols_of_other_servers() -> None:
    others = ("/v2/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
    assert {each.errors for each in ADMIN if not each.path.startswith(others)} == {NATIVE}
    assert EndpointTable(ADMIN).errors_at("/v1/nothing") is NATIVE


def test_batches_can_use_what_speaks_openai() -> None:
    """A failed line of a batch is written as OpenAI's error object."""
    batchable = [each for each in API if each.batchable is not None]
    assert {each.errors.schema for each in batchable} == {OPENAI.schema}


async def ping(caller: Principal) -> Response:
    if caller.key_id:
        raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
    return Response("pong")


PING = Endpoint(
    "POST",
    "/v1/ping",
    ping,
    group="jobs",
    errors=OpenAIErrors(field_names=((r"^max_tokens$", "max_pings"),)),
    charged=True,
    batchable=parse_chat,
    summary="Ping",
    tag="Pings",
    responses=(ResponseDoc("pong"),),
)


async def test_a_declaration_is_all_that_a_route_needs(settings: Settings, backend: Backend) -> None:
    settings = changed(settings, auth=True, plans={"few": {"requests": "9/day"}}, default_plan="few")
    async with Database.from_settings(settings) as database:
        keys = ApiKeys(database, pepper_of(settings))
        (_, key), (_, other) = [
            await keys.create(tenant="t", scopes=Scopes.parse(routes=[group])) for group in ("jobs", "batches")
        ]
    with patch("producer_api.app.API", (*API, PING)):
        app = create_app(settings, backend)
    async with calling(app, key) as client, calling(app, other) as stranger:
        assert (await stranger.post("/v1/ping")).status_code == 403
        refused = await client.post("/v1/ping")
        assert refused.json()["error"]["param"] == "max_pings"
        assert refused.headers["x-ratelimit-limit-requests"]
        assert (await client.get("/v1/ping")).headers["allow"] == "POST, OPTIONS"
        operation = (await client.get("/openapi.json")).json()["paths"]["/v1/ping"]["post"]
        assert operation["security"] == [{"key": []}]
        body = {"input_file_id": "file-x", "completion_window": "24h"}
        batch = await stranger.post("/v1/batches", json=body | {"endpoint": "/v1/ping"})
        assert batch.status_code == 404, "the file is missing, the endpoint is known"
        batch = await stranger.post("/v1/batches", json=body | {"endpoint": "/v1/pong"})
        assert "/v1/ping" in batch.json()["error"]["message"]
    await app.state.context.close()
