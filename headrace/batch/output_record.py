"""One record of a batch run's output, as in OpenAI's batches. Its id holds the run's id and the line's number.

Reference: OpenAI API, "The request output object".
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from headrace.batch.input_file import Line
from shared.error_codes import error_classes
from shared.errors import HeadraceError

ID = re.compile(r"batch_req_([0-9a-f]{32})_([1-9][0-9]{0,15})")


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: dict[str, Any]


class Failure(msgspec.Struct):
    code: str
    message: str


class Record(msgspec.Struct):
    """Outcome of one line: the API's `response`, which may be a refusal, or the `error` of an invalid line."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Failure | None

    @property
    def failed(self) -> bool:
        return self.response is None or self.response.status_code >= 400

    @property
    def usage(self) -> tuple[int, int]:
        """Prompt tokens and completion tokens."""
        usage = (self.response.body.get("usage") if self.response else None) or {}
        return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)

    @classmethod
    def from_completion(cls, run: str, line: Line, body: dict[str, Any]) -> Record:
        """Return the record of a chat completion."""
        job_id = str(body["id"]).replace("chatcmpl-", "req_", 1)
        return cls(record_id(run, line.number), line.custom_id, Response(200, job_id, body), None)

    @classmethod
    def from_job(cls, run: str, line: Line, job: dict[str, Any]) -> Record:
        """Return the record of a job that has ended, with the HTTP status that its error would have had."""
        status = 200
        if (problem := job.get("error")) is not None:
            status = error_classes().get(problem["code"], HeadraceError).status
        elif job["state"] != "completed":
            status = 409
        return cls(record_id(run, line.number), line.custom_id, Response(status, job["id"], job), None)

    @classmethod
    def from_refusal(cls, run: str, line: Line, error: HeadraceError) -> Record:
        """Return the record of a request that the API refused."""
        body = {"error": {"message": error.message, "code": error.code, "param": error.param}}
        return cls(record_id(run, line.number), line.custom_id, Response(error.status, "", body), None)

    @classmethod
    def from_bad_line(cls, run: str, line: Line, error: HeadraceError) -> Record:
        """Return the record of a line that is not a valid request."""
        return cls(record_id(run, line.number), line.custom_id, None, Failure(error.code, error.message))


class RecordHead(msgspec.Struct):
    """The fields of a record that a resumed run reads."""

    id: str
    response: RecordHeadResponse | None = None


class RecordHeadResponse(msgspec.Struct):
    status_code: int


def record_id(run: str, number: int) -> str:
    return f"batch_req_{run}_{number}"
