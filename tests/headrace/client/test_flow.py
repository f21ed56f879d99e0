"""Flows of the clients against prepared answers, and the frames that they read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace import HeadraceClient
from headrace.client.operations import Operations
from headrace.client.sans_io import Clock, Emit, Flow, Pause, Read, Replicas, Reply, Run, Send
from headrace.client.sse import Parser
from headrace.client.stream_readers import ChatStreamReader
from shared.errors import ConfigError, EngineFailed, HeadraceError, InvalidRequest, NotFound, Unavailable
from tests.support.sse_events import chunk, done, token

KEEPALIVE = b": keepalive\n"
LOST = Unavailable("cut")
JOB = Reply(200, {}, b'{"id": "req_1", "state": "completed"}')
FULL = Reply(503, {"retry-after": "3"}, b'{"code": "queue_full", "detail": "full"}')
OPEN = Reply(200, {})


class FakeTransport:
    """Answers the commands of a flow from a list and records them; its clock moves only by the flow's pauses."""

    def __init__(self, *answers: Reply | bytes | Unavailable, urls: tuple[str, ...] = ("http://a",)) -> None:
        self.now = 1000.0
        self.sent: list[Send] = []
        self.pauses: list[float] = []
        self.operations = Operations(Replicas(urls), 60.0, Clock(lambda: self.now, lambda: 0.0))
        self._answers = iter(answers)

    def items(self, flow: Flow[Any]) -> Iterator[Any]:
        run = Run(flow)
        while (command := run.next()) is not None:
            match command:
                case Emit(item):
                    yield item
                case Pause(seconds):
                    self.pauses.append(seconds)
                    self.now += seconds
                case Send() | Read():
                    if isinstance(command, Send):
                        self.sent.append(command)
                    answer = next(self._answers)
                    if isinstance(answer, Unavailable):
                        run.failure = answer
                    else:
                        run.response = answer
        self.result = run.result

    def run(self, flow: Flow[Any]) -> Any:
        assert list(self.items(flow)) == []
        return self.result


def test_submit_is_retried_with_the_same_key() -> None:
    """Given a lost connection, a full queue and a proxy error, expect one key, and a wait for Retry-After."""
    transport = FakeTransport(LOST, FULL, Reply(502, {}, b"<html>"), Reply(202, {}, b'{"id": "req_1"}'))
    assert transport.run(transport.operations.submit({"model": "m"}, None)) == {"id": "req_1"}
    assert len({send.headers["idempotency-key"] for send in transport.sent}) == 1
    assert len(transport.sent) == 4
    assert transport.pauses[1] == 3.0
    with_key = FakeTransport(Reply(202, {}, b"{}"))
    with_key.run(with_key.operations.submit({}, "mine"))
    assert with_key.sent[0].headers == {"idempotency-key": "mine"}


def test_errors_that_are_not_retryable_are_raised_at_once() -> None:
    for status, body, kind in (
        (400, b'{"error": {"code": "invalid_request", "message": "no", "param": "seed"}}', InvalidRequest),
        (404, b'{"code": "not_found", "detail": "no"}', NotFound),
        (500, b'{"code": "engine_failed", "detail": "late"}', EngineFailed),
        (418, b"tea", HeadraceError),
        (500, b'"text"', HeadraceError),
    ):
        transport = FakeTransport(Reply(status, {}, body))
        with pytest.raises(kind):
            transport.run(transport.operations.job("req_1"))
        assert transport.pauses == []


def test_retries_end_after_the_time_limit() -> None:
    """Given a server that stays away, expect growing pauses, and Unavailable within a minute."""
    transport = FakeTransport(*[LOST] * 1000)
    with pytest.raises(Unavailable):
        transport.run(transport.operations.job("req_1"))
    assert 50 < sum(transport.pauses) <= 60
    assert sorted(transport.pauses) == transport.pauses
    long_pause = FakeTransport(Reply(429, {"retry-after": "90"}, b'{"code": "queue_full"}'))
    with pytest.raises(HeadraceError) as refused:
        long_pause.run(long_pause.operations.submit({}, None))
    assert (refused.value.code, refused.value.retry_after) == ("queue_full", 90)


def test_replicas_are_tried_in_turn_and_a_good_one_is_kept() -> None:
    """Given two of three replicas down, expect no pause, and later calls at the replica that answers."""
    transport = FakeTransport(LOST, FULL, JOB, JOB, LOST, JOB, urls=("http://a", "http://b/", "http://c"))
    for _ in range(3):
        transport.run(transport.operations.job("req_1"))
    assert [send.url[7] for send in transport.sent] == ["a", "b", "c", "c", "c", "a"]
    assert transport.pauses == [0.0] * 3
    with pytest.raises(ConfigError):
        HeadraceClient("localhost:8000")


def test_events_resume_after_the_last_id() -> None:
    """Given lost connections, an interruption and keepalives, expect each event once, in order."""
    interrupted = b'retry: 2000\nevent: interrupted\ndata: {"code": "unavailable"}\n\n'
    transport = FakeTransport(
        *(OPEN, KEEPALIVE + token(0)[:9], token(0)[9:] + KEEPALIVE + token(1, 3), LOST),
        *(OPEN, token(4), interrupted),
        *(LOST, OPEN, token(5), b""),
        *(OPEN, done(6)),
    )
    events = list(transport.items(transport.operations.events("req_1", -1)))
    assert [(event.seq, event.name) for event in events] == [
        *((seq, "token") for seq in (0, 3, 4, 5)),
        (6, "done"),
    ]
    assert [send.headers["last-event-id"] for send in transport.sent] == ["-1", "3", "4", "4", "5"]
    assert transport.pauses[1] >= 2, "the server requested this pause"


def test_progress_resets_the_time_limit() -> None:
    """Given a connection lost after each token, expect the whole answer; without progress, expect Unavailable."""
    cuts = [each for seq in range(2000) for each in (OPEN, token(seq), LOST)]
    transport = FakeTransport(*cuts, OPEN, done(2000))
    assert len(list(transport.items(transport.operations.events("req_1", -1)))) == 2001
    assert sum(transport.pauses) > 60
    without_progress = FakeTransport(*[OPEN, b""] * 1000)
    with pytest.raises(Unavailable):
        list(without_progress.items(without_progress.operations.events("req_1", -1)))
    waiting = FakeTransport(*[OPEN, KEEPALIVE, LOST] * 1000, OPEN, done(0))
    assert len(list(waiting.items(waiting.operations.events("req_1", -1)))) == 1, "keepalives count as progress"


def test_no_content_ends_a_stream() -> None:
    transport = FakeTransport(Reply(204, {}))
    assert list(transport.items(transport.operations.events("req_1", 9))) == []


def test_result_waits_for_the_end() -> None:
    transport = FakeTransport(OPEN, token(0), LOST, OPEN, done(1), JOB)
    assert transport.run(transport.operations.result("req_1"))["state"] == "completed"
    assert [send.url for send in transport.sent][-1] == "http://a/v1/jobs/req_1"


def test_a_chat_resumes_after_the_last_whole_event() -> None:
    """Given a connection lost between the chunks of an event, expect each chunk once, and the same key."""
    first = chunk("") + chunk("a", 0)
    end = chunk("") + b"id: 3\ndata: [DONE]\n\n"
    transport = FakeTransport(
        *(OPEN, first + chunk("b"), LOST), *(OPEN, chunk("b") + chunk("c", 2), b""), *(OPEN, end)
    )
    chunks = list(transport.items(transport.operations.chat({}, None, ChatStreamReader())))
    assert [each["choices"][0]["delta"]["content"] for each in chunks] == ["", "a", "b", "c", ""]
    assert [send.headers.get("last-event-id") for send in transport.sent] == [None, "0", "2"]
    assert len({send.headers["idempotency-key"] for send in transport.sent}) == 1


def test_a_completion_is_assembled_from_its_chunks() -> None:
    """Given two choices and a lost connection, expect OpenAI's completion with all fields."""

    def part(index: int, text: str, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": reason, **more}
        head = {"id": "chatcmpl-1", "created": 5, "model": "m"}
        if text == "b":
            head |= {"prompt_token_ids": [1]}
        return b"data: %b\n\n" % json.dumps({**head, "choices": [choice]}).encode()

    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    last = {"id": "chatcmpl-1", "created": 5, "model": "m", "choices": [], "usage": usage}
    end = b"data: %b\n\nid: 3\ndata: [DONE]\n\n" % json.dumps(last).encode()
    first = part(1, "b") + b"id: 0\n" + part(0, "a", logprobs={"content": [{"token": "a"}]})
    transport = FakeTransport(
        OPEN, first, LOST, OPEN, part(0, "c", "stop", token_ids=[7], stop_reason=7) + part(1, "", "length") + end
    )
    found = transport.run(transport.operations.complete({"model": "m"}, "k"))
    assert [(each["message"]["content"], each["finish_reason"]) for each in found["choices"]] == [
        ("ac", "stop"),
        ("b", "length"),
    ]
    assert [each["logprobs"] for each in found["choices"]] == [{"content": [{"token": "a"}], "refusal": None}, None]
    assert [each.get("token_ids") for each in found["choices"]] == [[7], None]
    assert [each.get("stop_reason") for each in found["choices"]] == [7, None]
    assert found["prompt_token_ids"] == [1]
    assert (found["usage"], found["object"], found["id"]) == (usage, "chat.completion", "chatcmpl-1")
    assert transport.sent[0].body == {"model": "m", "stream_options": {"include_usage": True}}
    with pytest.raises(HeadraceError, match="expired"):
        gone = FakeTransport(Reply(204, {}))
        gone.run(gone.operations.complete({}, None))


def test_a_completion_has_its_reasoning() -> None:
    def part(delta: dict[str, Any], end: bytes = b"") -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if end else None}
        head = {"id": "chatcmpl-1", "created": 5, "model": "m", "choices": [choice]}
        return b"data: %b\n\n%b" % (json.dumps(head).encode(), end)

    done = b"id: 3\ndata: [DONE]\n\n"
    thought = part({"reasoning_content": "h", "reasoning": "h"}) + part(
        {"reasoning_content": "m", "reasoning": "m"}
    )
    transport = FakeTransport(OPEN, thought + part({"content": "Yes"}, done))
    [choice] = transport.run(transport.operations.complete({"model": "m"}, "k"))["choices"]
    expected = {"content": "Yes", "role": "assistant", "refusal": None}
    assert choice["message"] == {**expected, "reasoning_content": "hm", "reasoning": "hm"}
    transport = FakeTransport(OPEN, part({"reasoning_content": "h"}, done))
    [choice] = transport.run(transport.operations.complete({"model": "m"}, "k"))["choices"]
    assert choice["message"]["content"] is None


def test_a_failed_chat_raises_its_error() -> None:
    error = b'id: 1\ndata: {"error": {"code": "engine_failed", "message": "late"}}\n\n'
    transport = FakeTransport(OPEN, chunk("a", 0) + error)
    with pytest.raises(EngineFailed, match="late"):
        list(transport.items(transport.operations.chat({}, None, ChatStreamReader())))


def test_frames_are_parsed_at_any_chunk_boundary() -> None:
    text = b": hi\n\nid: 1\ndata: a\ndata: b\n\nretry: 500\nretry: x\n\nevent: e\r\ndata:\xc3\xa9\r\n\r\ndata: open"
    whole = Parser().feed(text)
    assert [(frame.event, frame.data, frame.id, frame.comment) for frame in whole] == [
        ("message", "", None, "hi"),
        ("message", "a\nb", "1", None),
        ("e", "é", None, None),
    ]
    parser = Parser()
    assert [frame for byte in text for frame in parser.feed(bytes([byte]))] == whole
    assert parser.retry == 0.5
