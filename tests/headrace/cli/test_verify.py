"""`headrace verify` against a server whose worker has a tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from headrace.cli.main import app
from producer_api.app import create_app
from shared.backend import Backend
from shared.errors import Conflict, HeadraceError, InvalidRequest, NotFound
from shared.settings import Settings
from tests.support.api_server import calling, serving
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import load
from tests.support.typer_internals import CliRunner
from tests.support.worker_harness import GatedEngine, Harness
from workers.engine.engine import Engine
from workers.engine.sampling.watermark import GreenListMark

TINY = "tiny"
SAVED = Path(__file__).with_name("recording.json")
BODY = {
    "model": TINY,
    "messages": [{"role": "user", "content": "a mill by the river"}],
    "temperature": 1.1,
    "seed": 5,
    "n": 2,
    "max_tokens": 12,
    "watermark": True,
    "top_p": 0.9,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"])


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return load(model)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"served_model_name": TINY})


@pytest.fixture
async def url(settings: Settings, backend: Backend) -> AsyncIterator[str]:
    async with serving(settings, backend) as address:
        yield address


async def submit(url: str, **fields: object) -> str:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/jobs", json={**BODY, **fields})
        assert answer.status_code == 202, answer.text
        found: str = answer.json()["id"]
        async with http.stream("GET", f"{url}/v1/jobs/{found}/events") as events:
            await events.aread()
        return found


async def verify(url: str, *args: object, code: int | None = 0) -> str:
    """Run the command in a thread, without the server's log. Raise the error that it reports.

    Args:
        code: the exit status; None for any.
    """

    def run() -> str:
        with capture_logs():
            done = CliRunner().invoke(app, ["verify", *map(str, args), "--url", url])
        if isinstance(done.exception, HeadraceError):
            raise done.exception
        assert code in (done.exit_code, None), done.output
        return done.output

    return await asyncio.to_thread(run)


async def test_a_job_has_the_same_bits_when_it_runs_again(
    settings: Settings, backend: Backend, url: str, engine: Engine, tmp_path: Path
) -> None:
    """A sampled, marked chat with two choices, verified by its id and from a file, beside other work."""
    file = tmp_path / "saved.json"
    async with Harness(backend, settings).worker(engine, "w", TINY):
        job = await submit(url)
        assert await verify(url, job, "--save", file) == "same bits: 24 tokens\n"
        await backend.redis.flushall()
        job, found = await asyncio.gather(submit(url, seed=6), verify(url, file, "--json"))
    result = json.loads(found)
    assert (result["same"], result["tokens"], result["difference"], result["reasons"]) == (True, 24, None, [])
    saved = json.loads(file.read_text())
    assert len(saved["prompt_token_ids"]) > len("a mill by the river")
    assert saved["request"]["params"]["seed"] == 5
    assert {"weights", "kernels", "machine", "torch", "quantization", "dtype", "headrace"} <= saved[
        "computation"
    ].keys()


async def test_the_recorded_prompt_is_not_rendered_again(
    settings: Settings, backend: Backend, url: str, engine: Engine, tmp_path: Path
) -> None:
    """Given a recording of another rendering of the same messages, its token ids are what runs."""
    file = tmp_path / "other.json"
    saved = json.loads(SAVED.read_text())
    file.write_text(json.dumps({**saved, "prompt_token_ids": saved["prompt_token_ids"][:20]}))
    async with Harness(backend, settings).worker(engine, "w", TINY):
        found = json.loads(await verify(url, file, "--json", code=1))
    assert not found["same"]
    assert "the token ids of the prompt differ" not in found["reasons"]


async def test_a_difference_is_reported_with_its_reason(
    settings: Settings, backend: Backend, url: str, engine: Engine, model: Path
) -> None:
    """Given a worker with another watermark, the first token that differs is printed, and exit status 1."""
    async with Harness(backend, settings).worker(engine, "w", TINY):
        job = await submit(url)
    async with Harness(backend, settings).worker(load(model, watermark=GreenListMark(delta=50.0)), "x", TINY):
        text = await verify(url, job, code=1)
        result = json.loads(await verify(url, job, "--json", code=1))
    assert "differs at token" in text
    assert "  watermark: green_list 0.5 2.0 then, green_list 0.5 50.0 now\n" in text
    different = result["difference"]
    assert different["logged"]["id"] != different["computed"]["id"]
    assert result["reasons"] == ["watermark: green_list 0.5 2.0 then, green_list 0.5 50.0 now"]


async def test_every_id_of_an_answer_names_its_job(
    settings: Settings, backend: Backend, url: str, engine: Engine
) -> None:
    """Ids of a chat, a completion, a response and its item are taken by all routes of jobs."""
    asked = {"/v1/chat/completions": {"messages": BODY["messages"]}, "/v1/completions": {"prompt": "a mill"}}
    asked["/v1/responses"] = {"input": "a mill"}
    async with Harness(backend, settings).worker(engine, "w", TINY), httpx.AsyncClient(base_url=url) as http:
        for path, fields in asked.items():
            limit = "max_output_tokens" if "input" in fields else "max_tokens"
            answer = (await http.post(path, json={"model": TINY, limit: 4, "temperature": 0, **fields})).json()
            given = [answer["id"], *(item["id"] for item in answer.get("output", []))]
            for each in given:
                job = (await http.get(f"/v1/jobs/{each}")).json()["id"]
                assert (await http.get(f"/v1/jobs/{each}/timeline")).json()["id"] == job
                assert (await http.get(f"/v1/jobs/{each}/recording")).json()["job_id"] == job
                assert (await http.delete(f"/v1/jobs/{each}")).json()["id"] == job
                assert "event: done" in (await http.get(f"/v1/jobs/{each}/events")).text
            assert (await verify(url, given[-1])).startswith("same bits: ")


@pytest.mark.parametrize(
    "changed",
    [
        {"choices": [{"index": 0, "token_ids": ["\x1b[2J"], "texts": ["x"]}]},
        {"choices": [{"index": 0, "token_ids": [1], "texts": [None]}]},
        {"choices": {}},
        {"choices": [{"index": 0, "token_ids": [], "texts": []}] * 2},
        {"prompt_token_ids": [[]]},
        {"computation": None},
        None,
    ],
)
async def test_a_hostile_servers_recording_is_refused(
    changed: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {} if changed is None else {**json.loads(SAVED.read_text()), **changed}
    monkeypatch.setattr("headrace.client.HeadraceClient.recording", lambda client, job_id: answer)
    with pytest.raises(InvalidRequest, match="the answer of the server must hold a recording"):
        await verify("http://h", "req_1")


async def test_a_hostile_servers_reasons_are_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, text = json.loads(SAVED.read_text()), "a\x1b[31mb\x9b2J"
    other = {**saved, "computation": {text: text}}
    recordings = iter([saved, other])
    monkeypatch.setattr("headrace.client.HeadraceClient.recording", lambda client, job_id: next(recordings))
    monkeypatch.setattr("headrace.client.HeadraceClient.run_recording", lambda client, recording: {"id": text})
    monkeypatch.setattr("headrace.client.HeadraceClient.result", lambda client, job_id: {"state": "completed"})
    found = await verify("http://h", "req_1")
    assert "a[31mb2J: unknown then, a[31mb2J now" in found
    assert "\x1b" not in found and "\x9b" not in found


async def test_what_cannot_be_verified_is_refused(
    settings: Settings, backend: Backend, url: str, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="does not exist, or its answer has expired"):
        await verify(url, "req_" + "0" * 32)
    for wrong in ("x" * 300, "..", "a/../../ready", "a?b", "a\udcff"):
        with pytest.raises(NotFound):
            await verify(url, wrong)
    broken = tmp_path / "broken.json"
    for text in ("{", "[]", "\udcff"):
        broken.write_text(text, errors="surrogateescape")
        with pytest.raises(InvalidRequest, match="must hold a recording"):
            await verify(url, broken)
    with pytest.raises(HeadraceError, match="cannot be read"):
        await verify(url, tmp_path / "absent.json")
    gated = GatedEngine(1)
    async with Harness(backend, settings).worker(gated, "w", TINY), httpx.AsyncClient(base_url=url) as http:
        running = (await http.post("/v1/jobs", json={**BODY, "watermark": False})).json()["id"]
        with pytest.raises(Conflict, match="only a completed job has a recording"):
            await verify(url, running)
        await http.delete(f"/v1/jobs/{running}")
        with pytest.raises(Conflict, match="no whole answer, it ended with cancelled"):
            await verify(url, running)


async def test_requests_are_kept_up_to_a_size(
    settings: Settings, backend: Backend, url: str, engine: Engine
) -> None:
    small = settings.model_copy(update={"recording_bytes": 2000})
    async with Harness(backend, small).worker(engine, "w", TINY):
        kept, large = await submit(url), await submit(url, messages=[{"role": "user", "content": "x" * 400}])
        assert await verify(url, kept)
        with pytest.raises(NotFound, match="was not kept"):
            await verify(url, large)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"request": {}, "prompt_token_ids": [1]}, "request"),
        ({"request": {"model": TINY, "prompt": "x", "params": {"seed": "1"}}, "prompt_token_ids": [1]}, "request"),
        (
            {"request": {"model": TINY, "prompt": "x", "work": {"type": "tokenize"}}, "prompt_token_ids": [1]},
            "request",
        ),
        ({"request": {"model": TINY}, "prompt_token_ids": [1]}, "messages"),
        ({"request": {"model": TINY, "prompt": "x", "params": {"n": 99}}, "prompt_token_ids": [1]}, "n"),
        ({"request": {"model": TINY, "prompt": "x"}, "prompt_token_ids": [-1]}, "prompt_token_ids"),
        ({"request": {"model": TINY, "prompt": "x"}, "prompt_token_ids": []}, "prompt_token_ids"),
        ({"request": {"model": TINY, "prompt": "x"}}, "prompt_token_ids"),
        ({"request": 1, "prompt_token_ids": [1]}, "request"),
        ({"request": {"model": "absent", "prompt": "x"}, "prompt_token_ids": [1]}, "model"),
    ],
)
async def test_a_wrong_recording_gets_a_typed_error(
    settings: Settings, backend: Backend, body: dict[str, Any], param: str
) -> None:
    app = create_app(settings, backend)
    async with calling(app) as http:
        answer = await http.post("/v1/recordings", json=body)
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["param"] == param
    await app.state.context.close()


async def test_another_tenants_job_is_unknown(
    settings: Settings, backend: Backend, url: str, engine: Engine
) -> None:
    async with Harness(backend, settings).worker(engine, "w", TINY):
        job = await submit(url)
        await backend.redis.hset(f"hr:{{{job}}}:state", "tenant", "other")
        with pytest.raises(NotFound, match="does not exist"):
            await verify(url, job)


async def test_the_recorded_log_still_has_its_bits(
    settings: Settings, backend: Backend, url: str, engine: Engine
) -> None:
    """The tokens are those of the file wherever the computation is; elsewhere, the reason is named."""
    async with Harness(backend, settings).worker(engine, "w", TINY):
        found = json.loads(await verify(url, SAVED, "--json", code=None))
    assert found["same"] or found["reasons"]
