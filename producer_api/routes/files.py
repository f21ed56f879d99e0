"""OpenAI's files: what batches read, and what they write. Somebody else's file is a 404."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Tenant
from producer_api.http.endpoint import Route
from producer_api.http.json_body import json_answer
from producer_api.http.multipart import OVERHEAD, Upload
from producer_api.openapi.document import Described, failures, parameter, struct_response
from producer_api.openapi.pagination import ORDER, Page, paging
from producer_api.schemas.files import FORM, File, FileDeleted, FileList, life_of, purpose_of
from producer_api.services import Context
from shared.files.content import new_file_id
from shared.files.records import FileRecord
from shared.files.store import Files

USUAL, MOST = 10_000, 10_000  # files of one list
PURPOSE = parameter("purpose", "query", "only those", type="string")
PREFIX = "/v1/files"


def files_router(context: Context, files: Files) -> APIRouter:
    router = APIRouter(route_class=Route, prefix=PREFIX, tags=["OpenAI"], dependencies=[context.allow("files")])

    @router.post(
        "",
        summary="Upload a file",
        openapi_extra=_form(),
        responses={
            **failures("openai", 400, 413, 415, 500, 503, 507),
            200: struct_response("the file, durable", File),
        },
    )
    async def upload(request: Request, tenant: Tenant) -> Response:
        return json_answer(File.of(await _receive(context, files, tenant, request)))

    @router.get(
        "",
        summary="List the files",
        openapi_extra={"parameters": [PURPOSE, ORDER, *paging(USUAL, MOST)]},
        responses={**failures("openai", 400, 404, 500, 503), 200: struct_response("a page of them", FileList)},
    )
    async def all_files(request: Request, tenant: Tenant) -> Response:
        page = Page.of(request, usual=USUAL, most=MOST)
        async with redis_deadline():
            found, more = await files.page(
                tenant,
                after=page.after,
                limit=page.limit,
                oldest_first=page.oldest_first,
                purpose=request.query_params.get("purpose"),
            )
        ids: list[str | None] = [*(record.id for record in found)] or [None]
        return json_answer(FileList([File.of(record) for record in found], more, ids[0], ids[-1]))

    @router.get(
        "/{file_id}",
        summary="See a file",
        responses={**failures("openai", 404, 500, 503), 200: struct_response("the file", File)},
    )
    async def see(file_id: str, tenant: Tenant) -> Response:
        async with redis_deadline():
            return json_answer(File.of(await files.find(file_id, tenant)))

    @router.get(
        "/{file_id}/content",
        summary="Read a file",
        response_class=FileResponse,
        responses={**failures("openai", 404, 500, 503), 200: {"description": "its bytes"}},
    )
    async def content(file_id: str, tenant: Tenant) -> Response:
        async with redis_deadline():
            record = await files.find(file_id, tenant)
        path = files.contents.find(record.id)
        return FileResponse(path, media_type="application/octet-stream", filename=record.filename)

    @router.delete(
        "/{file_id}",
        summary="Delete a file",
        responses={**failures("openai", 404, 500, 503), 200: struct_response("its id", FileDeleted)},
    )
    async def delete(file_id: str, tenant: Tenant) -> Response:
        async with redis_deadline():
            await files.delete(await files.find(file_id, tenant))
        return json_answer(FileDeleted(file_id))

    return router


async def _receive(context: Context, files: Files, tenant: str, request: Request) -> FileRecord:
    declared = request.headers.get("content-length", "0")
    async with redis_deadline():
        await files.records.room(int(declared) - OVERHEAD)
    file_id = new_file_id()
    draft = await asyncio.to_thread(files.contents.draft, file_id, context.settings.max_file_bytes)
    try:
        form = Upload(draft)
        await form.read(request)
        purpose, life = purpose_of(form.fields), life_of(form.fields, context.settings.file_ttl)
        assert form.filename is not None
        return await files.keep(draft, file_id, tenant=tenant, filename=form.filename, purpose=purpose, life=life)
    finally:
        draft.discard()


def _form() -> Described:
    text = {"type": "string"}
    properties = {"file": {"type": "string", "format": "binary"}, **dict.fromkeys(FORM, text)}
    schema = {"type": "object", "required": ["file", "purpose"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
