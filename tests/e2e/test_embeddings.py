"""Models that do not generate, as a user starts them: an embedding model beside a text model, and a classifier."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from headrace.cli.options import first_model
from headrace.client import HeadraceClient
from shared.models.model_store import MINILM
from tests.support.encoder_checkpoints import save_encoder
from tests.support.launched_server import Launched
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow


def test_an_embedding_model_runs_beside_a_text_model(tmp_path: Path, minilm: Path) -> None:
    """Given `--embedding-model`, it returns vectors, also after its worker's death, and the other model answers."""
    launched = Launched(tmp_path / "data", "--model", "scripted", "--embedding-model", MINILM.name)
    try:
        launched.await_line("^ready: ")
        with HeadraceClient(launched.url) as ours:
            assert first_model(ours) == "scripted", "chats must not default to the embedding model"
        with OpenAI(base_url=f"{launched.url}/v1", api_key="none", timeout=LIMIT_S) as sdk:
            assert {model.id for model in sdk.models.list()} == {"scripted", MINILM.name}
            found = sdk.embeddings.create(model=MINILM.name, input=["a mill", "a wheel"])
            assert [len(each.embedding) for each in found.data] == [384, 384]
            launched.kill("worker")
            again = sdk.embeddings.create(model=MINILM.name, input="a mill")
            assert again.data[0].embedding == found.data[0].embedding
            assert sdk.completions.create(model="scripted", prompt="x", max_tokens=2).usage.completion_tokens == 2
    finally:
        launched.stop()


def test_a_classifier_answers_the_same_after_its_workers_death(tmp_path: Path) -> None:
    save_encoder(tmp_path / "classifier", "BertForSequenceClassification", id2label={0: "no", 1: "yes"})
    launched = Launched(tmp_path / "data", "--model", str(tmp_path / "classifier"))
    body = {"model": "classifier", "input": ["a mill", "a wheel"]}
    try:
        launched.await_line("^ready: ")
        with httpx.Client(base_url=launched.url, timeout=LIMIT_S) as http:
            [model] = http.get("/v1/models").json()["data"]
            assert (model["id"], model["task"]) == ("classifier", "classify")
            before = http.post("/classify", json=body).json()
            assert {each["label"] for each in before["data"]} <= {"no", "yes"}
            launched.kill("worker")
            assert http.post("/classify", json=body).json()["data"] == before["data"]
            assert http.post("/v1/completions", json={"model": "classifier", "prompt": "x"}).status_code == 400
    finally:
        launched.stop()
