"""Reads a multipart form with one file, which is written to disk while it arrives, in constant memory.

Reference: RFC 7578.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePath

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from producer_api.http.open_streams import ClientGone
from shared.errors import InvalidRequest, MalformedBody, UnsupportedMediaType
from shared.files.content import Draft

MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024
MAX_OVERHEAD_BYTES = 64 * 2**10  # of a form, besides its file
MAX_FILENAME_CHARS = 255


class Upload:
    """Multipart form: the `filename` of its file, and the text of its other `fields`.

    Args:
        draft: receives the content of the file.
    """

    def __init__(self, draft: Draft) -> None:
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self._draft = draft
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""
        self._part = ""
        self._field: bytearray | None = None  # the part being read; None for the file
        self._pending: list[bytes] = []
        self._ended = False

    async def read(self, request: Request) -> None:
        """Read the whole body.

        Raises:
            UnsupportedMediaType, MalformedBody, InvalidRequest, PayloadTooLarge, StorageFull, ClientGone.
        """
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise UnsupportedMediaType("content-type must be multipart/form-data, with a boundary")
        try:
            parser = MultipartParser(options[b"boundary"], self._callbacks())  # type: ignore[arg-type]
            async for chunk in _chunks(request):
                parser.write(chunk)
                await self._flush()
        except (FormParserError, UnicodeDecodeError) as error:
            raise MalformedBody(f"the form is malformed: {error}") from None
        if not self._ended:
            raise MalformedBody("the form is incomplete: its closing boundary is missing")
        if self.filename is None:
            raise InvalidRequest("file is missing from the form", param="file")

    async def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            await asyncio.to_thread(self._draft.write, b"".join(pending))

    def _callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._headers.clear,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_part,
            "on_end": self._end,
        }

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _begin_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._part = options.get(b"name", b"").decode()
        self._field = bytearray()
        if self._part != "file":
            if len(self.fields) >= MAX_FIELDS or self._part in self.fields:
                raise MalformedBody(
                    f"the form must have at most {MAX_FIELDS} fields, each of them once", param=self._part[:64]
                )
            return
        if self.filename is not None or b"filename" not in options:
            raise InvalidRequest("file must be a single file with a filename", param="file")
        self._field = None
        self.filename = PurePath(options[b"filename"].decode()).name[:MAX_FILENAME_CHARS] or "upload"

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._pending.append(data[start:end])
            return
        if len(self._field) + end - start > MAX_FIELD_BYTES:
            raise InvalidRequest(
                f"a field of the form must have at most {MAX_FIELD_BYTES} bytes", param=self._part[:64]
            )
        self._field += data[start:end]

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._part] = self._field.decode()

    def _end(self) -> None:
        self._ended = True


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in chunks; give up on a client that sends nothing for `body_timeout`."""
    timeout_s = request.app.state.context.settings.body_timeout
    chunks = request.stream()
    try:
        while True:
            async with asyncio.timeout(timeout_s):
                yield await anext(chunks)
    except StopAsyncIteration:
        return
    except TimeoutError:
        raise MalformedBody(f"no part of the body arrived for {timeout_s:.0f} s") from None
    except ClientDisconnect:
        raise ClientGone from None
