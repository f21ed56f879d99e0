"""Upstream servers that refuse a request, or are busy."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from tests.support.fake_upstream import (
    Exchange,
    FakeUpstream,
    json_response,
    response,
    sending,
    serving,
)
from tests.support.runtime_contract import ask
from tests.support.runtime_driver import RuntimeDriver
from tests.support.upstream_faults import BAD, KEY, attempts, badly

REFUSALS = {
    "400 Bad Request": "invalid_request",
    "422 Unprocessable Entity": "invalid_request",
    "413 Content Too Large": "payload_too_large",
    "401 Unauthorized": "upstream_refused",
    "403 Forbidden": "upstream_refused",
    "404 Not Found": "upstream_refused",
}


@pytest.mark.parametrize(("status", "code"), REFUSALS.items(), ids=REFUSALS)
def test_a_refusal_is_not_tried_again(server: FakeUpstream, runtime: RuntimeDriver, status: str, code: str) -> None:
    said = f"temperature of\n{KEY} is wrong " + "x" * 10_000
    badly(server, sending(json_response(status, {"error": {"message": said}})))
    ended = runtime.answer(ask(BAD))
    assert ended.error is not None
    assert ended.error.code == code
    assert status[:3] in ended.error.message
    assert KEY not in ended.error.message
    assert len(ended.error.message) < 500
    assert "\n" not in ended.error.message
    if code == "invalid_request":
        assert "temperature of *** is wrong" in ended.error.message
    assert attempts(server) == 1


def test_a_redirect_is_not_followed(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    with serving() as other:
        badly(server, sending(response("307 Temporary Redirect", b"", f"location: {other.url}/completions")))
        ended = runtime.answer(ask(BAD))
        assert other.exchanges == []
    assert ended.error is not None
    assert ended.error.code == "upstream_refused"
    assert "redirects" in ended.error.message


@pytest.mark.parametrize("code", [400, "context_length_exceeded"])
def test_an_error_in_a_successful_answer_counts(
    server: FakeUpstream, runtime: RuntimeDriver, code: int | str
) -> None:
    body = {"error": {"message": "too long", "code": code, "type": "invalid_request_error"}}
    badly(server, sending(json_response("200 OK", body)))
    ended = runtime.answer(ask(BAD))
    assert ended.error is not None
    assert ended.error.code == ("invalid_request" if code == 400 else "context_length_exceeded")
    assert attempts(server) == 1


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize(
    "after", ["0", formatdate(0, usegmt=True), "soon", ""], ids=["seconds", "date", "word", "none"]
)
def test_a_busy_server_is_asked_again(
    server: FakeUpstream, runtime: RuntimeDriver, status: str, after: str
) -> None:
    """Given four busy answers, more than the attempts that may fail, expect the answer after them."""
    busy = sending(json_response(status, {"error": {"message": "busy"}}, f"retry-after: {after}"))

    async def later(exchange: Exchange) -> None:
        await (busy if attempts(server) <= 4 else server.follow_rule)(exchange)

    badly(server, later)
    ended = runtime.answer(ask(BAD))
    assert (ended.error, len(ended.text().split())) == (None, 8)
    assert attempts(server) == 5


@pytest.mark.parametrize(("after", "asked"), [("0", 8), ("3600", 1)])
def test_a_server_that_stays_busy_ends_the_request(
    server: FakeUpstream, runtime: RuntimeDriver, after: str, asked: int
) -> None:
    badly(server, sending(json_response("429 Too Many Requests", {}, f"retry-after: {after}")))
    ended = runtime.answer(ask(BAD))
    assert ended.error is not None
    assert (ended.error.code, ended.error.retryable) == ("unavailable", True)
    assert attempts(server) == asked
