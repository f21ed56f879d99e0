"""Dead letters by the API, the client and the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import httpx
import msgspec
import pytest

from headrace import AsyncHeadraceClient
from headrace.cli.main import app
from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.errors import ConfigError, NotFound, RequestAbandoned
from shared.protocol import ErrorInfo
from tests.support.fakes import MODEL, make_request
from tests.support.scripted_worker import ScriptedWorker
from tests.support.typer_internals import CliRunner

REASON = ErrorInfo.from_error(RequestAbandoned("it lost 3 workers"))


@pytest.fixture
async def letters(backend: Backend) -> list[DeadLetter]:
    """Four letters of the caller, oldest first, and one of another tenant between them."""
    made = [
        DeadLetter(
            make_request(f"prompt {i}", deadline=5.0, tenant="other" if i == 2 else "default"), REASON, 3, i + 1.5
        )
        for i in range(5)
    ]
    for letter in made:
        await backend.dead_letters.add(letter)
    return made


def ours(letters: list[DeadLetter]) -> list[str]:
    return [letter.id for letter in reversed(letters) if letter.request.tenant == "default"]


async def test_a_tenant_lists_its_own_letters_newest_first(
    http: httpx.AsyncClient, letters: list[DeadLetter], monkeypatch
) -> None:
    """In pages; a single letter has its request."""
    monkeypatch.setattr("producer_api.routes.dead_letters.PAGE_SIZE", 2)
    listed = (await http.get("/v1/dead-letters")).json()
    assert [letter["id"] for letter in listed["data"]] == ours(letters)
    assert "request" not in listed["data"][0]
    page = (await http.get("/v1/dead-letters", params={"limit": 2, "after": ours(letters)[0]})).json()["data"]
    assert [letter["id"] for letter in page] == ours(letters)[1:3]
    seen = (await http.get(f"/v1/dead-letters/{letters[0].id}")).json()
    assert (seen["attempts"], seen["at"], seen["reason"]["code"]) == (3, 1.5, "request_abandoned")
    assert seen["request"] == {
        "model": MODEL,
        "prompt": "prompt 0",
        "priority": "standard",
        "max_tokens": 8,
        "seed": 7,
    }
    assert (await http.post("/v1/jobs", json=seen["request"])).status_code == 202, (
        "the request of a letter is a body of POST /v1/jobs"
    )


async def test_a_replay_is_one_new_job_without_a_deadline(
    http: httpx.AsyncClient, letters: list[DeadLetter], worker: ScriptedWorker
) -> None:
    path = f"/v1/dead-letters/{letters[0].id}/replay"
    keyed = {"idempotency-key": "r"}
    first, second = [await http.post(path, headers=keyed) for _ in range(2)]
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    assert second.headers["idempotent-replayed"] == "true"
    request = await worker.answer("x")
    assert request.id == first.json()["id"] == second.json()["id"] != letters[0].id
    assert (request.prompt, request.deadline, request.params) == ("prompt 0", None, letters[0].request.params)
    assert (await http.get(f"/v1/dead-letters/{letters[0].id}")).status_code == 404
    assert (await http.post(path)).status_code == 404
    other = await http.post(f"/v1/dead-letters/{letters[1].id}/replay", headers=keyed)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_refused_replay_keeps_its_letter(
    http: httpx.AsyncClient, letters: list[DeadLetter], backend: Backend
) -> None:
    """Given a letter for a model that is gone, if it is replayed, Expect the refusal, and the letter kept."""
    gone = DeadLetter(
        msgspec.structs.replace(letters[0].request, id="req_" + "1" * 32, model="gone"), REASON, 3, 9.0
    )
    await backend.dead_letters.add(gone)
    refused = await http.post(f"/v1/dead-letters/{gone.id}/replay", headers={"idempotency-key": "r"})
    assert (refused.status_code, refused.json()["code"]) == (404, "model_not_found")
    assert (await http.get(f"/v1/dead-letters/{gone.id}")).status_code == 200


async def test_deleting_letters_keeps_other_tenants_letters(
    http: httpx.AsyncClient, letters: list[DeadLetter], backend: Backend
) -> None:
    assert (await http.delete(f"/v1/dead-letters/{letters[0].id}")).json() == {"removed": 1}
    assert (await http.delete("/v1/dead-letters")).json() == {"removed": 3}
    assert (await http.delete("/v1/dead-letters")).json() == {"removed": 0}
    assert [letter.id for letter in await backend.dead_letters.list()] == [letters[2].id]


async def test_a_missing_letter_is_404_and_a_wrong_limit_400(
    http: httpx.AsyncClient, letters: list[DeadLetter]
) -> None:
    for letter_id in ("req_" + "0" * 32, letters[2].id):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/replay")):
            response = await http.request(method, f"/v1/dead-letters/{letter_id}{path}")
            assert response.status_code == 404
            assert response.headers["content-type"] == "application/problem+json"
    for limit in ("0", "1001", "x", "-1", ""):
        assert (await http.get("/v1/dead-letters", params={"limit": limit})).json()["param"] == "limit"


async def test_the_client_lists_replays_and_deletes(
    api: str, letters: list[DeadLetter], worker: ScriptedWorker
) -> None:
    async with AsyncHeadraceClient(api) as client:
        assert [letter["id"] for letter in await client.dead_letters(limit=1)] == [letters[4].id]
        assert (await client.dead_letter(letters[4].id))["attempts"] == 3
        job = await client.replay_dead_letter(letters[4].id)
        await worker.answer("x")
        assert (await client.result(job["id"]))["state"] == "completed"
        await client.remove_dead_letter(letters[0].id)
        with pytest.raises(ConfigError):
            await client.remove_dead_letter("")  # its path would be that of all letters
        with pytest.raises(NotFound):
            await client.dead_letter(letters[0].id)
        assert await client.purge_dead_letters() == 2


async def test_the_commands_list_show_replay_and_purge(
    api: str, letters: list[DeadLetter], worker: ScriptedWorker
) -> None:
    """Tables and JSON."""

    async def headrace(*words: str) -> str:
        run: Callable[..., object] = CliRunner().invoke
        result = await asyncio.to_thread(run, app, ["dead-letters", *words, "--url", api])
        assert result.exit_code == 0, result.output
        return "\n".join(line for line in result.output.splitlines() if "[info" not in line)  # the server logs here

    assert [letter["id"] for letter in json.loads(await headrace("list", "--json"))] == ours(letters)
    listed = await headrace("list")
    assert all(letter_id in listed for letter_id in ours(letters))
    assert json.loads(await headrace("show", letters[0].id))["request"]["prompt"] == "prompt 0"
    job_id = (await headrace("replay", letters[0].id)).strip()
    assert (await worker.answer("x")).id == job_id
    assert json.loads(await headrace("replay", letters[1].id, "--json"))["state"] == "queued"
    assert json.loads(await headrace("purge", letters[3].id, "--json")) == {"removed": 1}
    assert (await headrace("purge")).strip() == "1 removed"
