"""KServe's protocol over HTTP: the server and its models, as tritonclient sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tritonclient.http.aio import InferenceServerClient

from producer_api.app import create_app
from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.repository.spec import ModelSpec
from shared.repository.status import ModelStatus, VersionStatus
from tests.support.api_server import calling
from tests.support.tensor_api import TensorApi, in_memory, over_http

BROKEN = ModelStatus(name="broken", spec=ModelSpec(name="broken"), reason="config.pbtxt:3: unknown field")
LOADING = ModelStatus(
    name="loading",
    spec=ModelSpec(name="loading"),
    versions=(
        VersionStatus(version="1", state="UNAVAILABLE", reason="model.onnx is damaged"),
        VersionStatus(version="2", state="LOADING", progress=0.5),
    ),
)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tensors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TensorApi]:
    async with over_http(in_memory(tmp_path_factory.mktemp("data"))) as made:
        await made.worker.announce(BROKEN, LOADING)
        for name, task in (("org/texts", "generate"), ("vectors", "embed")):
            await made.backend.registry.beat(WorkerInfo(id=name, pid=1, model=name, state="ready", task=task))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tensors: TensorApi) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(tensors.host) as opened:
        yield opened


async def test_health_and_metadata_of_the_server(triton: InferenceServerClient) -> None:
    assert await triton.is_server_live()
    assert await triton.is_server_ready()
    found = await triton.get_server_metadata()
    assert found["name"] == "headrace"
    assert "binary_tensor_data" in found["extensions"]
    assert not any("shared_memory" in each for each in found["extensions"])


async def test_a_server_without_models_is_not_ready(tmp_path: Path) -> None:
    settings = in_memory(tmp_path)
    backend = Backend.memory(settings)
    await backend.repository.report("w1", [BROKEN, LOADING])
    app = create_app(settings, backend)
    async with calling(app) as client:
        found = await client.get("/v2/health/ready")
    await app.state.context.close()
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert "scripted" in found.json()["error"]


async def test_models_are_described(triton: InferenceServerClient) -> None:
    assert await triton.get_model_metadata("batched") == {
        "name": "batched",
        "versions": ["1"],
        "platform": "python",
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "OUT", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert (await triton.get_model_metadata("add_sub"))["versions"] == ["1", "3"]
    assert (await triton.get_model_metadata("add_sub", "3"))["versions"] == ["3"]
    config = await triton.get_model_config("batched")
    assert (config["name"], config["max_batch_size"]) == ("batched", 4)
    assert config["input"][0]["data_type"] == "TYPE_FP32"


async def test_readiness_of_models(tensors: TensorApi, triton: InferenceServerClient) -> None:
    assert await triton.is_model_ready("add_sub")
    assert await triton.is_model_ready("add_sub", "1")
    for name, version in (("add_sub", "2"), ("nothing", ""), ("broken", ""), ("loading", "")):
        assert not await triton.is_model_ready(name, version)
    for path, status, text in (
        ("loading", 503, "loading is loading, 50% done"),
        ("loading/versions/1", 503, "loading, version 1, is not available: model.onnx is damaged"),
        ("broken", 503, "config.pbtxt:3: unknown field"),
        ("broken/versions/1", 404, "version '1' of the model 'broken' does not exist"),
        ("nothing", 404, "the model 'nothing' does not exist"),
        ("add_sub/versions/x", 404, "version 'x'"),
        ("..%2f..%2fetc", 404, "does not exist"),
    ):
        found = await tensors.http.get(f"/v2/models/{path}/ready")
        assert (found.status_code, text in found.json()["error"]) == (status, True), found.text
    assert (await tensors.http.get("/v2/models/loading/ready")).headers["retry-after"] == "1"
    assert "retry-after" not in (await tensors.http.get("/v2/models/broken/ready")).headers


async def test_models_that_are_not_ready_infer_nothing(tensors: TensorApi) -> None:
    for name, retry, text in (("loading", "1", "50% done"), ("broken", None, "unknown field")):
        for action in ("infer", "generate", "generate_stream"):
            found = await tensors.http.post(f"/v2/models/{name}/{action}", json={"inputs": []})
            assert (found.status_code, found.headers.get("retry-after")) == (503, retry)
            assert text in found.json()["error"]


async def test_the_index_lists_versions_and_unusable_models(triton: InferenceServerClient) -> None:
    found = await triton.get_model_repository_index()
    assert {"name": "add_sub", "version": "3", "state": "READY"} in found
    assert {"name": "broken", "state": "UNAVAILABLE", "reason": BROKEN.reason} in found
    assert {"name": "loading", "version": "2", "state": "LOADING"} in found
    assert [each["name"] for each in found] == sorted(each["name"] for each in found)


async def test_the_index_of_ready_models(tensors: TensorApi) -> None:
    found = (await tensors.http.post("/v2/repository/index", json={"ready": True})).json()
    assert {each["state"] for each in found} == {"READY"}
    refused = await tensors.http.post("/v2/repository/index", json={"ready": 1})
    assert (refused.status_code, "ready" in refused.json()["error"]) == (400, True)


async def test_statistics_of_ready_versions(triton: InferenceServerClient) -> None:
    [first, second] = (await triton.get_inference_statistics("add_sub"))["model_stats"]
    assert (first["version"], second["version"]) == ("1", "3")
    assert first["inference_stats"]["success"] == {"count": 3, "ns": 3000}
    assert first["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 1024}]
    [only] = (await triton.get_inference_statistics("add_sub", "3"))["model_stats"]
    assert only["version"] == "3"
    every = (await triton.get_inference_statistics())["model_stats"]
    assert {"add_sub", "batched"} <= {each["name"] for each in every}


@pytest.mark.parametrize(("name", "output"), [("org/texts", "text_output"), ("vectors", "embedding")])
async def test_models_of_texts_appear_too(
    tensors: TensorApi, triton: InferenceServerClient, name: str, output: str
) -> None:
    found = await triton.get_model_metadata(name)
    assert found["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [1]}]
    assert (found["versions"], found["outputs"][0]["name"]) == (["1"], output)
    assert await triton.is_model_ready(name, "1")
    assert not await triton.is_model_ready(name, "2")
    for action in ("infer", "generate", "generate_stream"):
        if (name, action[:8]) != ("org/texts", "generate"):
            refused = await tensors.http.post(f"/v2/models/{name}/{action}", json={"inputs": []})
            assert (refused.status_code, list(refused.json())) == (400, ["error"])
    index = await triton.get_model_repository_index()
    assert {"name": name, "version": "1", "state": "READY"} in index


async def test_an_unknown_path_has_the_errors_of_the_protocol(tensors: TensorApi) -> None:
    for path in ("/v2/nothing", "/v2/models/add_sub/nothing/at/all/infer", "/v2/repository/models/x/y"):
        found = await tensors.http.post(path)
        assert found.status_code in (404, 405), path
        assert list(found.json()) == ["error"], path
