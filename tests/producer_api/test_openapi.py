"""The OpenAPI documents of both ports, the page that shows them, and their examples."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from fastapi import FastAPI

from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import administering
from tests.support.fakes import MODEL
from tests.support.worker_harness import Harness


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rsplit("/", 1)[1]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


INFERENCE = ("/infer", "/generate", "/generate_stream")
ADAPTERS = {f"/v1/{action}_lora_adapter" for action in ("load", "unload")}
ORDERS = {f"/v2/repository/models/{{name}}/{action}" for action in ("load", "unload")}
POOLING_PATHS = {"/classify", "/pooling", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"}


DOCUMENTED_PATHS = {
    "/v1/completions",
    "/v1/embeddings",
    *POOLING_PATHS,
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/v1/chat/completions",
    "/v1/chat/completions/stream",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/v1/responses/{response_id}/input_items",
    "/v1/jobs",
    "/v1/jobs/{job_id}",
    "/v1/jobs/{job_id}/events",
    "/v1/jobs/{job_id}/timeline",
    "/v1/jobs/{job_id}/recording",
    "/v1/recordings",
    "/v1/dead-letters",
    "/v1/dead-letters/{letter_id}",
    "/v1/dead-letters/{letter_id}/replay",
    "/v1/models",
    "/v1/models/{name}",
    *ADAPTERS,
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/files/{file_id}/content",
    "/v1/batches",
    "/v1/batches/{batch_id}",
    "/v1/batches/{batch_id}/cancel",
    "/health",
    "/live",
    "/ready",
    "/version",
    "/",
    "/v2",
    *(f"/v2/models/{{name}}{rest}" for rest in ("", "/config", "/ready", "/stats", *INFERENCE)),
    "/v2/models/stats",
    "/v2/repository/index",
    *ORDERS,
    "/chat_tokenize",
    "/generate",
    "/generate_stream",
    "/info",
    "/invocations",
    "/models/{name}",
}


async def test_the_openapi_document_lists_every_route(client: httpx.AsyncClient) -> None:
    """Every reference resolves."""
    document = (await client.get("/openapi.json")).json()
    assert set(document["paths"]) == DOCUMENTED_PATHS
    assert set(references(document)) <= set(document["components"]["schemas"])


async def test_each_queued_request_has_its_headers_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    found = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            headers = {each["name"]: each["schema"] for each in operation.get("parameters", ())}
            if "x-headrace-ttft-policy" in headers:
                found[f"{method} {path}"] = headers
                assert {"400", "422"} & set(operation["responses"]) and "503" in operation["responses"]
    assert {f"post {path}" for path in ("/v1/jobs", "/v1/responses", "/generate", "/tokenize")} <= set(found)
    assert not {"get /v1/models", "post /v1/batches", "get /v1/jobs/{job_id}"} & set(found)
    headers = found["post /v1/chat/completions"]
    assert headers["x-headrace-ttft-policy"]["enum"] == ["best-effort", "refuse"]
    for name in ("x-headrace-ttft-target-ms", "x-llm-d-slo-ttft-ms"):
        assert headers[name] == {"type": "integer", "minimum": 1, "maximum": 3_600_000}
    assert {"Idempotency-Key", "x-llm-d-inference-objective", "x-gateway-inference-objective"} < set(headers)


async def test_the_admin_port_has_its_own_document(app: FastAPI) -> None:
    async with administering(app) as client:
        answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    document = answer.json()
    assert document["openapi"].startswith("3.")
    letters = {f"/v1/dead-letters{rest}" for rest in ("", "/{letter_id}", "/{letter_id}/replay")}
    sleep = {"/admin/models/{name}/sleep", "/admin/models/{name}/wake", "/sleep", "/wake_up", "/is_sleeping"}
    of_models = {f"/admin/models/{{name}}/{rest}" for rest in ("comparison", "shadow", "split")}
    repository = {"/admin/models", "/admin/traffic", *of_models, *ORDERS, *ADAPTERS}
    views = {f"/admin/{view}" for view in ("overview", "requests", "queues", "workers", "audit")}
    views |= {"/admin/requests/{job_id}", "/admin/workers/{worker_id}", "/admin/scaling/{name}"}
    gates = {
        f"/admin/queues/{{name}}{tenant}/{action}"
        for tenant in ("", "/tenants/{tenant_name}")
        for action in ("pause", "resume", "drain")
    }
    operation = views | gates | {"/admin/queues/{name}", "/v1/jobs/{job_id}/timeline"}
    shared = {"/health", "/live", "/ready", "/metrics"}
    assert set(document["paths"]) == shared | letters | sleep | repository | operation
    assert set(references(document)) <= set(document["components"]["schemas"])
    for methods in document["paths"].values():
        assert all(operation["responses"] for operation in methods.values())


async def test_the_api_reference_loads_from_this_server_alone(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert "unsafe" not in page.headers["content-security-policy"]
    for path in ("/web/docs.js", "/web/docs.css", "/web/app.css", "/favicon.ico"):
        assert f'"{path}"' in page.text
        assert (await client.get(path)).status_code == 200
    assert "http" not in page.text + (await client.get("/web/docs.js")).text
    document = (await client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert operation["responses"], path
            json_body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            assert json_body is None or json_body["examples"], f"{method} {path} has no example"


async def test_examples_can_be_sent_as_they_are(
    client: httpx.AsyncClient, backend: Backend, settings: Settings
) -> None:
    document = (await client.get("/openapi.json")).json()
    async with Harness(backend, settings).worker():
        for path, methods in document["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for name, example in content.get("application/json", {}).get("examples", {}).items():
                answer = await client.post(path.replace("{name}", MODEL), json=example["value"])
                if answer.status_code >= 300:
                    error = answer.json()["error"]
                    param = error["param"] if isinstance(error, dict) else None
                    assert (path, param) in NEED_MORE, f"{path}, {name}: {error}"


NEED_MORE = {  # a model that does not generate, a repository, a file, a model that can be held to a grammar
    *((path, None) for path in ("/v2/models/{name}/infer", *ORDERS, *ADAPTERS)),
    *((path, "model") for path in ("/v1/embeddings", *POOLING_PATHS)),
    ("/v1/batches", None),
    ("/v1/chat/completions", "response_format"),
}
