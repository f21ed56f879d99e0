"""One line of the output, as OpenAI's batches have it. Its id tells the run and the line of the input.

Reference: OpenAI API, "The request output object".
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from headrace.batch.input_file import Line
from shared.errors import HeadraceError, error_classes

ID = re.compile(r"batch_req_([0-9a-f]{32})_([1-9][0-9]{0,15})")


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: dict[str, Any]


class Failure(msgspec.Struct):
    code: str
    message: str


class Record(msgspec.Struct):
    """`response` has what the API answered, also a refusal; `error` what never became a request."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Failure | None

    @property
    def failed(self) -> bool:
        return self.response is None or self.response.status_code >= 400

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer."""
        found = (self.response.body.get("usage") if self.response else None) or {}
        return found.get("prompt_tokens", 0), found.get("completion_tokens", 0)


class Head(msgspec.Struct):
    """What a resumed run needs of a record."""

    id: str
    response: HeadResponse | None = None


class HeadResponse(msgspec.Struct):
    status_code: int


def record_id(run: str, number: int) -> str:
    return f"batch_req_{run}_{number}"


def of_completion(run: str, line: Line, body: dict[str, Any]) -> Record:
    """A chat completion."""
    request_id = str(body["id"]).replace("chatcmpl-", "req_", 1)
    return Record(record_id(run, line.number), line.custom_id, Response(200, request_id, body), None)


def of_job(run: str, line: Line, job: dict[str, Any]) -> Record:
    """A job that has ended, with the status that its error would have had."""
    status = 200
    if (problem := job.get("error")) is not None:
        status = error_classes().get(problem["code"], HeadraceError).status
    elif job["state"] != "completed":
        status = 409
    return Record(record_id(run, line.number), line.custom_id, Response(status, job["id"], job), None)


def of_refusal(run: str, line: Line, error: HeadraceError) -> Record:
    """What the API said no to."""
    body = {"error": {"message": error.message, "code": error.code, "param": error.param}}
    return Record(record_id(run, line.number), line.custom_id, Response(error.status, "", body), None)


def of_bad_line(run: str, line: Line, error: HeadraceError) -> Record:
    """A line that is no request."""
    return Record(record_id(run, line.number), line.custom_id, None, Failure(error.code, error.message))
