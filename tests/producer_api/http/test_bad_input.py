"""Wrong requests of every kind, refused in the error format of the API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from structlog.testing import CapturingLogger

from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import Settings, load
from tests.support.api_server import calling, chat, serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "hi"}
TOOL = {"role": "tool", "content": "x", "tool_call_id": "c"}
CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
ARGUMENTS = ('{"a":"\\ud800"}', "[" * 1200, '{"a":' * 3000)  # JSON that no template can be given
NAMED = {"type": "function", "function": {"name": "g"}}
UNHOLDABLE = [
    {"not": {"type": "null"}},
    {"type": "array", "uniqueItems": True},
    {"type": "number", "multipleOf": 0.07},
    {"type": "string", "format": "regex"},
    {"type": "string", "pattern": "(?=a)b"},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    {"properties": {"a": {"if": {}, "then": False}}},
    {"contains": {"type": "null"}},
    {"$ref": "https://example.com/schema"},
]


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, TOOL]


def allowed(*names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}


def schema_format(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", **fields}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


SAMPLING = [  # for both APIs
    ({"temperature": 101}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 101}, "presence_penalty"),
    ({"frequency_penalty": -101}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 10**4000}, "max_tokens"),
    ({"top_k": -(10**400)}, "top_k"),
    ({"n": 10**400}, "n"),
    ({"logit_bias": {"9" * 400: 1}}, "logit_bias"),
    ({"max_tokens": True}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"stop": "x" * 257}, "stop"),
    ({"ignore_eos": "yes"}, "ignore_eos"),
    ({"priority": "urgent"}, "priority"),
    ({"model": 1}, "model"),
    ({"model": "no such/name!"}, "model"),
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
    ({"messages": [TOOL]}, "messages[0].tool_call_id"),
    ({"messages": [USER | {"tool_call_id": "c"}]}, "messages[0].tool_call_id"),
    ({"messages": [USER | {"tool_calls": CALLS}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{"role": "assistant", "tool_calls": CALLS * 129}]}, "messages[0].tool_calls"),
    *(({"messages": called(each)}, "messages[1].tool_calls[0].function.arguments") for each in ARGUMENTS),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [tool(name="no spaces")]}, "tools[0].function.name"),
    ({"tools": [tool(), tool()]}, "tools"),
    ({"tools": [tool(name=f"f{i}") for i in range(513)]}, "tools"),
    ({"tools": [tool(description="x" * 1_000_000)]}, "tools"),
    ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"not": {}}, strict=True)]}, "tools[0].function.parameters"),
    ({"tools": [tool()], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [tool()], "tool_choice": allowed("g")}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
    ({"tool_choice": allowed("f")}, "tool_choice"),
    ({"tools": [tool()], "ignore_eos": True}, "ignore_eos"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED}, "tool_choice"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": schema_format(name="no spaces")}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_object", "value": 5}}, "response_format.value"),
    ({"detokenize": False}, "detokenize"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"response_format": schema_format(schema={"title": "x" * 65_536})}, "response_format"),
    ({"response_format": schema_format(schema=nested(65))}, "response_format"),
    ({"response_format": schema_format(schema={"$ref": "#/$defs/none"})}, "response_format"),
    ({"response_format": schema_format(schema={"properties": [1]})}, "response_format"),
    ({"response_format": schema_format(schema={"required": [1]})}, "response_format"),
    *(({"response_format": schema_format(schema=schema, strict=True)}, "response_format") for schema in UNHOLDABLE),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a" * 65_537}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: A & B & C & D & E & F"}}, "structured_outputs"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs"),
    ({"structured_outputs": {"json": '{"const": "\\ud800"}'}}, "structured_outputs"),
    ({"structured_outputs": {"lark": "a"}}, "structured_outputs"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"-5": 1}}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
    ({"messages": [USER] * 1025}, "messages"),
]
TIMES = [({"timeout": value}, "timeout") for value in (0, -1, 86_401, "5", float("inf"), float("nan"))]
CHAT = [
    ({"stream": "yes"}, "stream"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"best_of": 2}, "best_of"),
]
JOBS = [
    ({"messages": None, "prompt": ""}, "prompt"),
    ({"messages": None, "prompt": [1, -1]}, "prompt"),
    ({"messages": None, "prompt": 5}, "prompt"),
    ({"messages": None, "prompt": [1.5]}, "prompt"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"timeout": 5, "deadline": 2e9}, "deadline"),
    ({"deadline": 1e9}, "timeout"),
    ({"deadline": 1e12}, "timeout"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of one application for requests that are all refused, so that none changes its state."""
    settings = load({"data_dir": tmp_path_factory.mktemp("data"), "model": "scripted"}).settings
    backend = Backend.memory(settings)
    await ScriptedWorker(backend).announce()
    app = create_app(settings, backend)
    async with calling(app) as opened:
        yield opened
    await app.state.context.close()
    await backend.close()


def dump(body: dict) -> bytes:
    return json.dumps(body).encode()  # writes NaN and Infinity as clients in Python do


@pytest.mark.parametrize(("fields", "param"), SAMPLING + TIMES + CHAT)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_chat_field_is_named(refusing: httpx.AsyncClient, fields: dict, param: str) -> None:
    response = await refusing.post("/v1/chat/completions", content=dump(chat(**fields)), headers=JSON)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("fields", "param"), SAMPLING + TIMES + JOBS)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_job_field_is_named(refusing: httpx.AsyncClient, fields: dict, param: str) -> None:
    response = await refusing.post("/v1/jobs", content=dump(chat(**fields)), headers=JSON)
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["param"] == param
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Bad Request", 400)
    assert problem["instance"] == "/v1/jobs"


async def test_unsupported_fields_that_are_off_are_accepted(client: httpx.AsyncClient, backend: Backend) -> None:
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": False}
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "stop": None,
        "n": None,
    }
    response = await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x", "stop": None})
    assert response.status_code == 202
    request = httpx.Request("POST", "http://localhost", json=chat(**nothing, **harmless))
    from shared.schemas.openai.chat import ChatRequest

    assert ChatRequest.model_validate_json(request.content).to_request("t").params.n == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs"])
@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "malformed_body"),
        (b"", JSON, 400, "malformed_body"),
        (b"\xff\xfe", JSON, 400, "malformed_body"),
        (b'"\\ud800"', JSON, 400, "malformed_body"),
        (b"[" * 100_000, JSON, 400, "malformed_body"),
        (b"[]", JSON, 400, "invalid_request"),
        (b"null", JSON, 400, "invalid_request"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"{}" + b" " * 2**22, JSON, 413, "payload_too_large"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_is_not_an_object_or_too_large_is_refused(
    refusing: httpx.AsyncClient, path: str, content: bytes, headers: dict, status: int, code: str
) -> None:
    response = await refusing.post(path, content=content, headers=headers)
    assert response.status_code == status, response.text
    found = response.json()
    assert found.get("error", found)["code"] == code


async def test_a_chunked_body_over_the_limit_is_413_while_it_arrives(api: str) -> None:

    async def endless():
        for _ in range(100):
            yield b" " * 2**16

    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        response = await http.post("/v1/chat/completions", content=endless(), headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "payload_too_large"
        assert response.headers["x-request-id"]


async def test_choices_that_overflow_the_log_name_max_tokens(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    app = create_app(settings.model_copy(update={"log_tokens": 100}), backend)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        response = await http.post("/v1/chat/completions", json=chat(max_tokens=51, n=2))
        assert "got 102" in response.text
        lowered = await http.post("/v1/chat/completions", json=chat(max_tokens=100_000))
        assert "got 1024" in lowered.text, "what is possible counts"
        assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/jobs", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/health", 405),
    ],
)
async def test_a_wrong_path_or_method_has_the_apis_error_format(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """Also the request id and the security headers."""
    response = await client.request(method, path)
    assert response.status_code == status
    openai = path.startswith("/v1/") and not path.startswith("/v1/jobs")
    assert ("error" in response.json()) == openai
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    if status == 405:
        assert response.headers["allow"]


async def test_a_bug_is_a_500_without_internals(
    settings: Settings, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Broken:
        def __getattr__(self, name: str):
            raise ZeroDivisionError("a secret")

    logged = CapturingLogger()
    monkeypatch.setattr("producer_api.observability.request_log.log", logged)
    app = create_app(settings, backend)
    app.state.context.gateway._token_log = Broken()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        response = await http.post("/v1/chat/completions", json=chat())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert [call.method_name for call in logged.calls] == ["exception", "info"]


async def test_a_request_over_the_limit_is_503(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    narrow = settings.model_copy(update={"max_connections": 1})
    async with serving(narrow, backend) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        job_id = (await http.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
        async with http.stream("GET", f"/v1/jobs/{job_id}/events"):
            refused = await http.get("/v1/models")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
