"""Lines of a batch: the requests of the input file, and their outcomes.

Reference: OpenAI API, "The request input object" and "The request output object" of the Batch API.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from producer_api.routes.catalog import BATCHABLE
from shared.batches.store import Batch, Chunk, LineError
from shared.errors import HeadraceError
from shared.files.json_lines import foreign_encoding, json_text
from shared.validation.json_text import nesting

CHUNK_LINES = 128  # fewer need more fsyncs, more leave less to share among processes
MAX_ERRORS = 100  # reported per file
MAX_ID_CHARS = 512
MAX_LINE_DEPTH = 200  # objects and arrays inside each other; the decoder recurses over them
# in msgspec's errors
MISSING_FIELD, FIELD_OF_WRONG_TYPE = re.compile(r"missing required field `(\w+)`"), re.compile(r"at `\$\.(\w+)`")
STOPPED = {
    "batch_cancelled": "the batch was cancelled before this line was done",
    "batch_expired": "the batch's completion window ended before this line was done",
}


class Line(msgspec.Struct, frozen=True):
    """One line of the input; `body` is the JSON body for the API at `url`."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_decode = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


def seed_of(name: str) -> int:
    """Return the seed of a request, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"seed:{name}".encode()).digest()[:8]) >> 1


@dataclass
class Survey:
    """Result of checking an input file."""

    total: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)


def survey(path: Path, batch: Batch, *, most_lines: int, most_bytes: int) -> Survey:
    """Check a batch's input and find its chunks.

    Args:
        most_lines: limit on the number of requests.
        most_bytes: limit on the size of a line.
    """
    found, seen = Survey(), set[bytes]()
    with path.open("rb") as stream:
        if encoding := foreign_encoding(stream.read(4)):
            found.errors.append(LineError("invalid_encoding", f"the file must be UTF-8, but it is {encoding}", 1))
            return found
        stream.seek(0)
        offset, begun, number = 0, 0, 0
        while line := stream.readline(most_bytes + 1):
            number += 1
            if text := json_text(line, first=number == 1):
                found.total += 1
                error = _too_long(stream, line, number, most_bytes) or _fault(text, number, batch, seen)
                if error is not None:
                    found.errors.append(error)
            if found.total > most_lines:
                found.errors.append(
                    LineError("too_many_requests", f"a batch must have at most {most_lines} lines", number)
                )
            if len(found.errors) >= MAX_ERRORS or found.total > most_lines:
                return found
            if number - begun == CHUNK_LINES:
                found.chunks.append(Chunk(offset, begun + 1, CHUNK_LINES))
                offset, begun = stream.tell(), number
        if number > begun:
            found.chunks.append(Chunk(offset, begun + 1, number - begun))
    if not found.total:
        found.errors.append(LineError("empty_file", "the file must have at least one request"))
    return found


def _too_long(stream: IO[bytes], line: bytes, number: int, most: int) -> LineError | None:
    """Return an error if the line is too long; then also read to its end."""
    if len(line) <= most:
        return None
    while line and not line.endswith(b"\n"):
        line = stream.readline(most)
    return LineError("line_too_long", f"a line must have at most {most} bytes", number)


def _fault(data: bytes, number: int, batch: Batch, seen: set[bytes]) -> LineError | None:
    if nesting(data.decode(errors="replace")) > MAX_LINE_DEPTH:
        return LineError("invalid_json_line", f"the line is nested deeper than {MAX_LINE_DEPTH} levels", number)
    try:
        line = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _undecodable(error, number)
    for wrong, name, message in (
        (line.method != "POST", "method", "must be POST"),
        (line.url != batch.endpoint, "url", f"must be the batch's endpoint, {batch.endpoint}"),
        (not 1 <= len(line.custom_id) <= MAX_ID_CHARS, "custom_id", f"must have 1 to {MAX_ID_CHARS} characters"),
        (not bytes(line.body).startswith(b"{"), "body", "must be an object"),
    ):
        if wrong:
            return LineError(f"invalid_{name}", f"{name} {message}", number, name)
    digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        return LineError("duplicate_custom_id", "custom_id must be unique in the file", number, "custom_id")
    seen.add(digest)
    return None


def _undecodable(error: Exception, number: int) -> LineError:
    if not isinstance(error, msgspec.ValidationError):
        return LineError("invalid_json_line", "the line must be valid JSON", number)
    if (found := MISSING_FIELD.search(str(error))) is not None:
        return LineError("missing_required_parameter", f"{found[1]} is required", number, found[1])
    if (found := FIELD_OF_WRONG_TYPE.search(str(error))) is not None:
        return LineError("invalid_line", f"{found[1]} must be a string", number, found[1])
    return LineError("invalid_line", "the line must be an object", number)


def locate(path: Path, number: int, recorded: Chunk | None) -> Chunk | None:
    """Return chunk `number`, from 0, of a checked file: as recorded, or found again if the record is damaged.

    Returns None if the file has no such chunk.
    """
    first = number * CHUNK_LINES
    with path.open("rb") as stream:
        if recorded is not None and _is_chunk(stream, number, recorded):
            return recorded
        stream.seek(0)
        for _ in zip(range(first), stream, strict=False):
            pass
        offset = stream.tell()
        count = sum(1 for _ in zip(range(CHUNK_LINES), stream, strict=False))
    return Chunk(offset, first + 1, count) if count else None


def _is_chunk(stream: IO[bytes], number: int, chunk: Chunk) -> bool:
    """Return whether a chunk begins with the right number, at the beginning of a line."""
    if chunk.first != number * CHUNK_LINES + 1 or not 1 <= chunk.count <= CHUNK_LINES:
        return False
    if number == 0 or chunk.offset <= 0:
        return number == chunk.offset == 0
    stream.seek(chunk.offset - 1)
    return stream.read(1) == b"\n"


def read(path: Path, chunk: Chunk) -> Iterator[tuple[int, Line]]:
    """Yield each line of a chunk of a checked file, with its number."""
    with path.open("rb") as stream:
        stream.seek(chunk.offset)
        for number in range(chunk.first, chunk.first + chunk.count):
            if data := json_text(stream.readline(), first=number == 1):
                yield number, _decode(data)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a line, as a line of the output or error file."""

    data: bytes
    completed: bool
    expired: bool = False

    @classmethod
    def answered(cls, line: Line, job_id: str, answer: Any, headers: Mapping[str, str]) -> Outcome:
        """Return the outcome of an answer, with the headers that report on its request."""
        more = {"headers": headers} if headers else {}
        return cls(_result(line, job_id, 200, answer, more), completed=True)

    @classmethod
    def failed(cls, line: Line, job_id: str, error: HeadraceError) -> Outcome:
        body = BATCHABLE[line.url].errors.body(error, line.url)
        return cls(_result(line, job_id, error.status, body), completed=False)

    @classmethod
    def stopped(cls, line: Line, job_id: str, code: str) -> Outcome:
        """Return the outcome of a line that the end of its batch interrupted."""
        error = {"code": code, "message": STOPPED[code]}
        fields = {"id": _result_id(job_id), "custom_id": line.custom_id, "response": None, "error": error}
        return cls(_encode(fields) + b"\n", completed=False, expired=code == "batch_expired")


def _result(line: Line, job_id: str, status: int, body: Any, more: Mapping[str, Any] | None = None) -> bytes:
    response = {"status_code": status, "request_id": job_id, "body": body, **(more or {})}
    fields = {"id": _result_id(job_id), "custom_id": line.custom_id, "response": response, "error": None}
    return _encode(fields) + b"\n"


def _result_id(job_id: str) -> str:
    return f"batch_{job_id}"
