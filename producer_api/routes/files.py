"""OpenAI's files: the input and the output of batches. Another tenant's file is a 404."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from producer_api.admission.deadline import redis_deadline
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.json_body import json_response
from producer_api.http.multipart import MAX_OVERHEAD_BYTES, Upload
from producer_api.openapi.pagination import ORDER, Page, page_parameters
from producer_api.openapi.parameters import parameter
from producer_api.schemas.files import FORM, File, FileDeleted, FileList, lifetime_s, purpose_of, unknown_fields
from producer_api.services import Context
from shared.files.content import new_file_id
from shared.files.records import FileRecord
from shared.files.store import Files
from shared.schemas.field_paths import MAX_NAME_CHARS
from shared.schemas.unknown_fields import report

DEFAULT_LIMIT, MAX_LIMIT = 10_000, 10_000  # files in one page
PURPOSE = parameter("purpose", "query", "only files with this purpose", type="string")


async def upload(context: Context, files: Files, request: Request, tenant: str) -> Response:
    return json_response(File.from_record(await _receive(context, files, tenant, request)))


async def all_files(files: Files, request: Request, tenant: str) -> Response:
    page = Page.from_request(request, default=DEFAULT_LIMIT, maximum=MAX_LIMIT)
    async with redis_deadline():
        found, more = await files.page(
            tenant,
            after=page.after,
            limit=page.limit,
            oldest_first=page.oldest_first,
            purpose=request.query_params.get("purpose"),
        )
    ids: list[str | None] = [*(record.id for record in found)] or [None]
    return json_response(FileList([File.from_record(record) for record in found], more, ids[0], ids[-1]))


async def see(files: Files, file_id: str, tenant: str) -> Response:
    async with redis_deadline():
        return json_response(File.from_record(await files.find(file_id, tenant)))


async def content(files: Files, file_id: str, tenant: str) -> Response:
    async with redis_deadline():
        record = await files.find(file_id, tenant)
    path = files.contents.find(record.id)
    return FileResponse(path, media_type="application/octet-stream", filename=record.filename)


async def delete(files: Files, file_id: str, tenant: str) -> Response:
    async with redis_deadline():
        await files.delete(await files.find(file_id, tenant))
    return json_response(FileDeleted(file_id))


async def _receive(context: Context, files: Files, tenant: str, request: Request) -> FileRecord:
    declared = request.headers.get("content-length", "0")
    async with redis_deadline():
        await files.records.check_room(int(declared) - MAX_OVERHEAD_BYTES)
    file_id = new_file_id()
    draft = await asyncio.to_thread(files.contents.draft, file_id, context.settings.max_file_bytes)
    try:
        form = Upload(draft)
        await form.read(request)
        unknown = unknown_fields(form.fields, strict_fields=context.settings.strict_fields)
        request.state.facts.report_ignored(report(name[:MAX_NAME_CHARS] for name in unknown))
        purpose, life = purpose_of(form.fields), lifetime_s(form.fields, context.settings.file_ttl)
        assert form.filename is not None
        return await files.keep(draft, file_id, tenant=tenant, filename=form.filename, purpose=purpose, life=life)
    finally:
        draft.discard()


_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, **{name: {"type": "string"} for name in FORM}},
}
_endpoint = partial(Endpoint, group="files", errors=OPENAI, tag="OpenAI")
ENDPOINTS = (
    _endpoint(
        "POST",
        "/v1/files",
        upload,
        uploads=True,
        summary="Upload a file",
        form=_FORM,
        responses=(ResponseDoc("the file, stored durably", File),),
        failures=(400, 413, 415, 500, 503, 507),
    ),
    _endpoint(
        "GET",
        "/v1/files",
        all_files,
        summary="List the files",
        parameters=[PURPOSE, ORDER, *page_parameters(DEFAULT_LIMIT, MAX_LIMIT)],
        responses=(ResponseDoc("a page of files", FileList),),
        failures=(400, 404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/files/{file_id}",
        see,
        summary="Get a file",
        responses=(ResponseDoc("the file", File),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/files/{file_id}/content",
        content,
        summary="Get the content of a file",
        responses=(ResponseDoc("the content"),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/files/{file_id}",
        delete,
        summary="Delete a file",
        responses=(ResponseDoc("the id of the deleted file", FileDeleted),),
        failures=(404, 500, 503),
    ),
)
