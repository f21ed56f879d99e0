"""tritonclient against real models of a repository, through Redis and a worker process."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from shared.runtime.sockets import free_port
from tests.support.launched_server import Launched
from tests.support.tensor_repository import CONFIGS, write_repository
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.slow
ABSENT = (OSError, InferenceServerException)  # errors of clients before the server or the model is there
Http = over_http.InferenceServerClient
Grpc = over_grpc.InferenceServerClient


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Run `headrace up` on a repository, load its models, and yield its addresses of HTTP, gRPC and metrics."""
    folder = tmp_path_factory.mktemp("kserve")
    write_repository(folder / "models")
    ports = {"grpc_port": free_port("127.0.0.1"), "metrics_port": free_port("127.0.0.1")}
    launched = Launched(
        folder, model_repository=folder / "models", model_control="explicit", triton_metrics=True, **ports
    )
    try:
        address = launched.url.removeprefix("http://")
        with Http(address, network_timeout=LIMIT_S, connection_timeout=LIMIT_S) as client:
            until(
                lambda: {each["name"] for each in client.get_model_repository_index()} >= CONFIGS.keys(),
                despite=ABSENT,
            )
            for name in CONFIGS:
                client.load_model(name)
        yield address, *(f"127.0.0.1:{port}" for port in ports.values())
    finally:
        launched.stop()


@pytest.fixture(scope="module")
def http(addresses: tuple[str, str, str]) -> Iterator[Http]:
    with Http(addresses[0], network_timeout=LIMIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(addresses: tuple[str, str, str]) -> Iterator[Grpc]:
    with Grpc(addresses[1]) as client:
        yield client


def given(form: Any, name: str, *rows: list[int]) -> Any:
    array = np.array(rows, np.int32)
    made = form.InferInput(name, list(array.shape), "INT32")
    made.set_data_from_numpy(array)
    return made


def pair(form: Any) -> list[Any]:
    return [given(form, "INPUT0", [1, 2]), given(form, "INPUT1", [10, 20])]


def test_models_are_ready_and_described(http: Http, grpc: Grpc) -> None:
    for client in (http, grpc):
        assert client.is_server_ready()
        assert all(client.is_model_ready(name) for name in CONFIGS)
        assert client.is_model_ready("add_sub", "2")
        assert not client.is_model_ready("add_sub", "3")
        assert not client.is_model_ready("broken")
    assert http.get_model_metadata("add_sub")["versions"] == ["1", "2"]
    assert grpc.get_model_config("sums").config.sequence_batching.oldest.max_candidate_sequences == 4
    [broken] = [each for each in http.get_model_repository_index() if each["name"] == "broken"]
    assert "broken/config.pbtxt, line 2" in broken["reason"]
    assert "max_batch_sise" in broken["reason"]


def test_a_broken_model_says_why_it_cannot_be_loaded(http: Http, grpc: Grpc) -> None:
    for client in (http, grpc):
        with pytest.raises(InferenceServerException, match="max_batch_sise"):
            client.load_model("broken")


def test_inference_over_both_transports(http: Http, grpc: Grpc) -> None:
    for client, form in ((http, over_http), (grpc, over_grpc)):
        result = client.infer("add_sub", pair(form), model_version="1", request_id="7")
        assert result.as_numpy("OUTPUT0").tolist() == [[11, 22]]
        assert result.as_numpy("OUTPUT1").tolist() == [[-9, -18]]
        with pytest.raises(InferenceServerException, match="INPUT1"):
            client.infer("add_sub", pair(form)[:1])
        best = client.infer("add_sub", pair(form), outputs=[form.InferRequestedOutput("OUTPUT0", class_count=1)])
        assert best.as_numpy("OUTPUT0").tolist() == [[b"22:1:one"]]
        assert client.infer("twice", [given(form, "X", [1, 2])]).as_numpy("Y").tolist() == [[2, 4]]
    statistics = http.get_inference_statistics("add_sub", "2")["model_stats"][0]
    assert statistics["name"] == "add_sub"


def test_statistics_count_inferences(http: Http, grpc: Grpc, addresses: tuple[str, str, str]) -> None:
    def count() -> int:
        [found] = grpc.get_inference_statistics("add_sub", "2").model_stats
        return found.inference_stats.success.count

    before = count()
    http.infer("add_sub", pair(over_http), model_version="2")
    until(lambda: count() > before, despite=ABSENT)
    *_, metrics = addresses
    page = httpx.get(f"http://{metrics}/metrics", timeout=LIMIT_S).text
    assert re.search(r'nv_inference_request_success(_total)?\{model="add_sub",version="2"\} [1-9]', page)


def test_sequences_and_decoupled_models_stream(grpc: Grpc) -> None:
    found: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: found.put(error or result))
    for i in range(3):
        step = [given(over_grpc, "IN", [i + 1])]
        grpc.async_stream_infer("sums", step, sequence_id=5, sequence_start=i == 0, sequence_end=i == 2)
    sums = [found.get(timeout=LIMIT_S).as_numpy("OUT").tolist() for _ in range(3)]
    numbers = over_grpc.InferInput("IN", [2], "INT32")
    numbers.set_data_from_numpy(np.array([3, 4], np.int32))
    grpc.async_stream_infer("repeat", [numbers], enable_empty_final_response=True)
    *values, last = [found.get(timeout=LIMIT_S) for _ in range(3)]
    grpc.stop_stream()
    assert sums == [[[1]], [[3]], [[6]]]
    assert [each.as_numpy("OUT").tolist() for each in values] == [[3], [4]]
    assert last.get_response().parameters["triton_final_response"].bool_param


def test_a_model_is_unloaded_and_loaded_again(http: Http, grpc: Grpc) -> None:
    http.unload_model("repeat")
    until(lambda: not grpc.is_model_ready("repeat"), despite=ABSENT)
    grpc.load_model("repeat")
    until(lambda: http.is_model_ready("repeat"), despite=ABSENT)
