"""Files: upload, list, read, delete; limits, and isolation between tenants."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from producer_api.app import create_app
from shared.backend import Backend
from shared.files.content import new_file_id
from shared.files.store import Files
from shared.settings import Settings

CONTENT = b'{"a": 1}\n' * 20_000 + b"\r\n--not the boundary\r\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_file_bytes": 2**20, "files_bytes": 3 * 2**20, "max_body_bytes": 4096})


@pytest.fixture
def files(settings: Settings, backend: Backend) -> Files:
    return Files.from_settings(settings, backend)


def on_disk(settings: Settings) -> list[Path]:
    folder = settings.files / "content"
    return sorted(folder.iterdir()) if folder.exists() else []


OTHER_PURPOSES = ("assistants", "fine-tune", "evals", "vision", "user_data")  # besides batch


async def upload(client: httpx.AsyncClient, content: bytes = b"x", name: str = "in.jsonl", **fields: Any) -> Any:
    return await client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "batch", **fields})


async def test_the_sdk_uploads_lists_reads_and_deletes(api: str, settings: Settings) -> None:
    async with AsyncOpenAI(base_url=f"{api}/v1", api_key="k", max_retries=0) as sdk:
        made = await sdk.files.create(
            file=("in.jsonl", CONTENT),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert (made.bytes, made.filename, made.purpose, made.status) == (
            len(CONTENT),
            "in.jsonl",
            "batch",
            "processed",
        )
        assert made.expires_at == made.created_at + 7200
        assert (await sdk.files.retrieve(made.id)).id == made.id
        assert (await sdk.files.content(made.id)).content == CONTENT
        others = [await sdk.files.create(file=(each, b"x"), purpose=each) for each in OTHER_PURPOSES]
        ids = [made.id, *(other.id for other in others)]
        assert [file.id async for file in sdk.files.list(order="asc", limit=2)] == ids
        assert [file.id async for file in sdk.files.list()] == ids[::-1]
        assert [file.id async for file in sdk.files.list(purpose="batch")] == ids[:1]
        assert [file.filename async for file in sdk.files.list(purpose="evals")] == ["evals"]
        assert (await sdk.files.delete(made.id)).deleted
        for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
            with pytest.raises(NotFoundError):
                await call(made.id)
        assert len(on_disk(settings)) == len(OTHER_PURPOSES)
        with pytest.raises(BadRequestError) as caught:
            await sdk.files.create(file=("x", b"x"), purpose="batch_output")
        assert caught.value.param == "purpose"


async def test_uploads_over_a_limit_leave_nothing_on_disk(client: httpx.AsyncClient, settings: Settings) -> None:
    assert (await upload(client, b"x" * 2**20)).status_code == 200
    over = await upload(client, b"x" * (2**20 + 1))
    assert (over.status_code, over.json()["error"]["param"]) == (413, "file")
    assert (await upload(client, b"x" * 2**22)).status_code == 413
    assert (await upload(client, b"x" * 2**20)).status_code == 200
    full = await upload(client, b"x" * 2**20 + b"")
    assert full.status_code == 200
    assert (await upload(client)).json()["error"]["code"] == "storage_full"
    assert len(on_disk(settings)) == 3
    big = {"model": "m" * 5000, "messages": []}
    assert (await client.post("/v1/chat/completions", json=big)).status_code == 413


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"garbage", 400),
        (b"--b\r\n", 400),
        (b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n', 400),
        (b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n', 400),
        (b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\ncut off', 400),
        (b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 2000 + b"\r\n--b--\r\n", 400),
        (b"--b\r\n" + b"x" * 100_000, 400),
        (b'--b\r\ncontent-disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n', 400),
    ],
)
async def test_a_malformed_form_is_refused(
    client: httpx.AsyncClient, settings: Settings, body: bytes, status: int
) -> None:
    response = await client.post(
        "/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert response.status_code == status, response.text
    assert on_disk(settings) == []


async def test_a_wrong_upload_names_the_field_and_keeps_nothing(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    """A path in a file name is cut off."""
    assert (await client.post("/v1/files", json={})).status_code == 415
    for fields, param in (
        ({"purpose": "assistants_output"}, "purpose"),
        ({"expires_after[anchor]": "now"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after[seconds]"),
    ):
        response = await upload(client, **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    twice = await client.post("/v1/files", files=[("file", ("a", b"x")), ("file", ("b", b"x"))])
    assert twice.status_code == 400
    client.headers["origin"] = "http://evil.test"
    assert (await upload(client)).status_code == 403
    client.headers["origin"] = "http://localhost"
    assert on_disk(settings) == []
    assert (await upload(client, name="../../etc/passwd")).json()["filename"] == "passwd"


async def test_a_stalled_upload_is_removed(settings: Settings, backend: Backend) -> None:
    settings = settings.model_copy(update={"body_timeout": 0.05})
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")],
    }
    begun = [{"type": "http.request", "body": b"--b\r\n", "more_body": True}]

    async def receive() -> Any:
        return begun.pop() if begun else await never()

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await create_app(settings, backend)(scope, receive, send)
    assert sent[0]["status"] == 400
    assert on_disk(settings) == []


async def test_another_tenants_file_is_404(client: httpx.AsyncClient, files: Files) -> None:
    file_id = new_file_id()
    draft = files.contents.draft(file_id)
    draft.write(b"secret")
    await files.keep(draft, file_id, tenant="other", filename="x", purpose="batch", life=60)
    for path in (file_id, "file-x", "file-" + "0" * 32, "..%2f..%2fetc%2fpasswd"):
        for suffix in ("", "/content"):
            assert (await client.get(f"/v1/files/{path}{suffix}")).status_code == 404
        assert (await client.delete(f"/v1/files/{path}")).status_code == 404
    assert (await client.get("/v1/files")).json()["data"] == []
    assert (await client.get("/v1/files", params={"after": file_id})).status_code == 404
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert (await client.post("/v1/batches", json=body)).status_code == 404


async def test_a_sweep_removes_expired_and_orphaned_files_only(
    client: httpx.AsyncClient, files: Files, settings: Settings
) -> None:
    kept = (await upload(client)).json()["id"]
    ended, lost = new_file_id(), new_file_id()
    draft = files.contents.draft(ended)
    await files.keep(draft, ended, tenant="default", filename="x", purpose="batch", life=-1)
    assert (await client.get(f"/v1/files/{ended}")).status_code == 404
    draft = files.contents.draft(lost)
    draft.keep()
    os.utime(files.contents.find(lost), (0, 0))
    os.utime(files.contents.find(kept), (0, 0))
    assert await files.sweep() == 2
    assert [path.name for path in on_disk(settings)] == [kept]


async def test_a_batch_with_the_same_key_is_created_once(client: httpx.AsyncClient) -> None:
    """Another body under the key is a 422."""
    file_id = (await upload(client)).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    first, again = [await client.post("/v1/batches", json=body, headers={"idempotency-key": "k"}) for _ in range(2)]
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = {**body, "completion_window": "1h"}
    assert (await client.post("/v1/batches", json=other, headers={"idempotency-key": "k"})).status_code == 422
    assert len((await client.get("/v1/batches")).json()["data"]) == 1


async def test_too_many_open_batches_are_429(settings: Settings, backend: Backend) -> None:
    app = create_app(settings.model_copy(update={"max_batches": 1}), backend)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        file_id = (await upload(client)).json()["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert (await client.post("/v1/batches", json=body)).status_code == 200
        refused = await client.post("/v1/batches", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_batches")
    assert "retry-after" in refused.headers
