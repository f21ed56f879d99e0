"""`headrace models` with a real repository: versions are added, loaded, split and shadowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cli.main import app
from shared.runtime.sockets import free_port
from tests.support.launched_server import Launched
from tests.support.onnx_models import place, scaled_sum
from tests.support.typer_internals import CliRunner
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.slow
Models = Callable[..., Any]
TENSOR = {"shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
BODY = {"inputs": [{"name": name, **TENSOR} for name in "AB"]}
POLICY = "version_policy { all { } }"


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launched, Models]]:
    """Run `headrace up` on an empty repository, and yield it with a function that runs `headrace models`."""
    folder = tmp_path_factory.mktemp("traffic")
    (folder / "models").mkdir()
    port = free_port("127.0.0.1")
    running = Launched(folder, model_repository=folder / "models", model_control="explicit", admin_port=port)

    def models(*command: str) -> Any:
        url = () if command[0] == "add" else ("--url", f"http://127.0.0.1:{port}")
        done = CliRunner().invoke(app, ["models", *command, *url, "--json"])
        assert done.exit_code == 0, str(done.exception)
        return json.loads(done.stdout)

    try:
        live = f"http://127.0.0.1:{port}/live"
        until(lambda: httpx.get(live, timeout=LIMIT_S).is_success, despite=(httpx.TransportError,))
        yield running, models
    finally:
        running.stop()


def test_versions_are_added_split_and_compared(launched: tuple[Launched, Models], tmp_path: Path) -> None:
    running, models = launched
    repository = running.data_dir / "models"
    file = place(scaled_sum(), tmp_path, "sums") / "model.onnx"
    for version in ("1", "2"):
        assert models("add", str(file), "sums", "--repository", str(repository))["version"] == version
    (repository / "sums" / "config.pbtxt").write_text(POLICY)
    models("load", "sums")
    [sums] = [model for model in models("list") if model["name"] == "sums"]
    assert [(each["version"], each["state"]) for each in sums["versions"]] == [("1", "READY"), ("2", "READY")]
    models("alias", "prod", "sums@1")
    models("shadow", "prod", "sums@2")
    with httpx.Client(base_url=running.url, timeout=LIMIT_S) as http:
        until(lambda: http.get("/v2/models/prod").status_code == 200)
        for _ in range(3):
            answer = http.post("/v2/models/prod/infer", json=BODY).raise_for_status().json()
            assert (answer["model_name"], answer["model_version"]) == ("prod", "1")
            assert answer["outputs"][0]["data"] == [2, 4, 6, 8]
        until(lambda: models("compare", "prod")["compared"] >= 3)
        found = models("compare", "prod")
        assert (found["exact"], found["max_difference"], found["labels_agree"]) == (1.0, 0.0, 1.0)
        models("unload", "sums")
        assert http.post("/v2/models/prod/infer", json=BODY).status_code == 503
