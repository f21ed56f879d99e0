"""The client: its flows against answers made by hand, and both clients against a server that breaks off."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace import AsyncHeadraceClient, HeadraceClient
from headrace.client.operations import Calls, ChatReader
from headrace.client.sans_io import Clock, Emit, Flow, Pause, Read, Replicas, Reply, Run, Send
from headrace.client.sse import Parser
from shared.errors import ConfigError, EngineFailed, HeadraceError, InvalidRequest, NotFound, Unavailable
from tests.support.waiting import LIMIT_S

KEEPALIVE = b": keepalive\n"
CUT = Unavailable("cut")
JOB = Reply(200, {}, b'{"id": "req_1", "state": "completed"}')
FULL = Reply(503, {"retry-after": "3"}, b'{"code": "queue_full", "detail": "full"}')
OPEN = Reply(200, {})


def token(seq: int, count: int = 1) -> bytes:
    return b'id: %d\nevent: token\ndata: {"seq": %d}\n\n' % (seq + count - 1, seq)


def done(seq: int) -> bytes:
    return b'id: %d\nevent: done\ndata: {"seq": %d}\n\n' % (seq, seq)


def chunk(text: str, seq: int | None = None) -> bytes:
    data = json.dumps({"id": "chatcmpl-1", "choices": [{"delta": {"content": text}}]})
    return (b"" if seq is None else b"id: %d\n" % seq) + b"data: %b\n\n" % data.encode()


class World:
    """Answers a flow's commands from a list and notes what it asked; its clock moves by the flow's pauses alone."""

    def __init__(self, *answers: Reply | bytes | Unavailable, urls: tuple[str, ...] = ("http://a",)) -> None:
        self.now = 1000.0
        self.sent: list[Send] = []
        self.pauses: list[float] = []
        self.calls = Calls(Replicas(urls), 60.0, Clock(lambda: self.now, lambda: 0.0))
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
                        run.answer = answer
        self.result = run.result

    def run(self, flow: Flow[Any]) -> Any:
        assert list(self.items(flow)) == []
        return self.result


def test_a_submit_is_sent_again_with_the_same_key() -> None:
    """Given a cut, a full queue and a server's proxy, Expect one key, and Retry-After waited for."""
    world = World(CUT, FULL, Reply(502, {}, b"<html>"), Reply(202, {}, b'{"id": "req_1"}'))
    assert world.run(world.calls.submit({"model": "m"}, None)) == {"id": "req_1"}
    assert len({send.headers["idempotency-key"] for send in world.sent}) == 1
    assert len(world.sent) == 4
    assert world.pauses[1] == 3.0
    given = World(Reply(202, {}, b"{}"))
    given.run(given.calls.submit({}, "mine"))
    assert given.sent[0].headers == {"idempotency-key": "mine"}


def test_what_a_retry_cannot_help_is_raised_at_once() -> None:
    for status, body, kind in (
        (400, b'{"error": {"code": "invalid_request", "message": "no", "param": "seed"}}', InvalidRequest),
        (404, b'{"code": "not_found", "detail": "no"}', NotFound),
        (500, b'{"code": "engine_failed", "detail": "late"}', EngineFailed),
        (418, b"tea", HeadraceError),
        (500, b'"text"', HeadraceError),
    ):
        world = World(Reply(status, {}, body))
        with pytest.raises(kind):
            world.run(world.calls.job("req_1"))
        assert world.pauses == []


def test_patience_ends() -> None:
    """Given a server that stays away, Expect Unavailable within a minute, with ever longer pauses till then."""
    world = World(*[CUT] * 1000)
    with pytest.raises(Unavailable):
        world.run(world.calls.job("req_1"))
    assert 50 < sum(world.pauses) <= 60
    assert sorted(world.pauses) == world.pauses
    long = World(Reply(429, {"retry-after": "90"}, b'{"code": "queue_full"}'))
    with pytest.raises(HeadraceError) as refused:
        long.run(long.calls.submit({}, None))
    assert (refused.value.code, refused.value.retry_after) == ("queue_full", 90)


def test_replicas_are_tried_in_turn_and_a_good_one_is_kept() -> None:
    """Given three replicas of which two are down, Expect no wait, and later calls at the one that answers."""
    world = World(CUT, FULL, JOB, JOB, CUT, JOB, urls=("http://a", "http://b/", "http://c"))
    for _ in range(3):
        world.run(world.calls.job("req_1"))
    assert [send.url[7] for send in world.sent] == ["a", "b", "c", "c", "c", "a"]
    assert world.pauses == [0.0] * 3
    with pytest.raises(ConfigError):
        HeadraceClient("localhost:8000")


def test_events_go_on_after_the_last_seen() -> None:
    """Given cuts, an interruption and keepalives, Expect each event once, in order."""
    interrupted = b'retry: 2000\nevent: interrupted\ndata: {"code": "unavailable"}\n\n'
    world = World(
        *(OPEN, KEEPALIVE + token(0)[:9], token(0)[9:] + KEEPALIVE + token(1, 3), CUT),
        *(OPEN, token(4), interrupted),
        *(CUT, OPEN, token(5), b""),
        *(OPEN, done(6)),
    )
    events = list(world.items(world.calls.events("req_1", -1)))
    assert [(event.seq, event.name) for event in events] == [
        *((seq, "token") for seq in (0, 3, 4, 5)),
        (6, "done"),
    ]
    assert [send.headers["last-event-id"] for send in world.sent] == ["-1", "3", "4", "4", "5"]
    assert world.pauses[1] >= 2, "the server said when to come back"


def test_attempts_start_anew_after_progress() -> None:
    """Given an answer longer than all patience, cut after each token, Expect it whole; without progress, an end."""
    cuts = [each for seq in range(2000) for each in (OPEN, token(seq), CUT)]
    world = World(*cuts, OPEN, done(2000))
    assert len(list(world.items(world.calls.events("req_1", -1)))) == 2001
    assert sum(world.pauses) > 60
    stuck = World(*[OPEN, b""] * 1000)
    with pytest.raises(Unavailable):
        list(stuck.items(stuck.calls.events("req_1", -1)))
    waiting = World(*[OPEN, KEEPALIVE, CUT] * 1000, OPEN, done(0))
    assert len(list(waiting.items(waiting.calls.events("req_1", -1)))) == 1, "a waiting job is no failure"


def test_an_answer_read_to_its_end_is_over() -> None:
    world = World(Reply(204, {}))
    assert list(world.items(world.calls.events("req_1", 9))) == []


def test_result_waits_for_the_end() -> None:
    world = World(OPEN, token(0), CUT, OPEN, done(1), JOB)
    assert world.run(world.calls.result("req_1"))["state"] == "completed"
    assert [send.url for send in world.sent][-1] == "http://a/v1/jobs/req_1"


def test_a_chat_is_resumed_by_whole_events() -> None:
    """Given a cut in the midst of an event's chunks, Expect none of them twice, and the same key again."""
    first = chunk("") + chunk("a", 0)
    end = chunk("") + b"id: 3\ndata: [DONE]\n\n"
    world = World(*(OPEN, first + chunk("b"), CUT), *(OPEN, chunk("b") + chunk("c", 2), b""), *(OPEN, end))
    chunks = list(world.items(world.calls.chat({}, None, ChatReader())))
    assert [each["choices"][0]["delta"]["content"] for each in chunks] == ["", "a", "b", "c", ""]
    assert [send.headers.get("last-event-id") for send in world.sent] == [None, "0", "2"]
    assert len({send.headers["idempotency-key"] for send in world.sent}) == 1


def test_a_completion_is_put_together_from_its_chunks() -> None:
    """Given two choices over a cut, Expect OpenAI's completion with texts, reasons, logprobs and usage."""

    def part(index: int, text: str, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": reason, **more}
        head = {"id": "chatcmpl-1", "created": 5, "model": "m"}
        return b"data: %b\n\n" % json.dumps({**head, "choices": [choice]}).encode()

    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    last = {"id": "chatcmpl-1", "created": 5, "model": "m", "choices": [], "usage": usage}
    end = b"data: %b\n\nid: 3\ndata: [DONE]\n\n" % json.dumps(last).encode()
    first = part(1, "b") + b"id: 0\n" + part(0, "a", logprobs={"content": [{"token": "a"}]})
    world = World(OPEN, first, CUT, OPEN, part(0, "c", "stop") + part(1, "", "length") + end)
    found = world.run(world.calls.complete({"model": "m"}, "k"))
    assert [(each["message"]["content"], each["finish_reason"]) for each in found["choices"]] == [
        ("ac", "stop"),
        ("b", "length"),
    ]
    assert [each["logprobs"] for each in found["choices"]] == [{"content": [{"token": "a"}], "refusal": None}, None]
    assert (found["usage"], found["object"], found["id"]) == (usage, "chat.completion", "chatcmpl-1")
    assert world.sent[0].body == {"model": "m", "stream_options": {"include_usage": True}}
    with pytest.raises(HeadraceError, match="expired"):
        gone = World(Reply(204, {}))
        gone.run(gone.calls.complete({}, None))


def test_a_chat_that_fails_raises_what_it_failed_of() -> None:
    error = b'id: 1\ndata: {"error": {"code": "engine_failed", "message": "late"}}\n\n'
    world = World(OPEN, chunk("a", 0) + error)
    with pytest.raises(EngineFailed, match="late"):
        list(world.items(world.calls.chat({}, None, ChatReader())))


def test_frames_are_parsed_however_they_are_cut() -> None:
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


def test_importing_the_package_imports_no_http() -> None:
    code = "import headrace, sys; assert 'httpx' not in sys.modules; headrace.HeadraceClient; headrace.__version__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT_S)
    with pytest.raises(AttributeError):
        import headrace

        _ = headrace.nothing


# --- both clients against a socket


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Stage:
    """A server that gives each connection its answer, and then cuts it."""

    def __init__(self, *answers: bytes) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self._answers.pop(0) if self._answers else b"")
        await writer.drain()
        writer.close()


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def both(url: str, ask: Callable[[Any], Any], *, patience: float = 60) -> list[Any]:
    """What an asynchronous and a blocking client give for the same call."""

    def blocking() -> list[Any]:
        with HeadraceClient(url, patience=patience) as client:
            return list(ask(client))

    async with AsyncHeadraceClient(url, patience=patience) as client:
        first = [item async for item in ask(client)]
    assert await asyncio.to_thread(blocking) == first
    return first


async def test_both_clients_survive_a_server_that_breaks_off() -> None:
    """Given half a head, half a chunk and a clean end too early, Expect each event once."""
    answers = (
        b"HTTP/1.1 200 OK\r\ncont",
        HEAD + piece(token(0)) + b"ff\r\nid: 1\nev",
        HEAD + piece(token(1)) + b"0\r\n\r\n",
        b"",
        HEAD + piece(done(2)),
    )
    stage = Stage(*answers, *answers)
    async with stage as url:
        events = await both(url, lambda client: client.events("req_1"))
    assert [event.seq for event in events] == [0, 1, 2]
    assert sum(b"last-event-id: 1" in request for request in stage.requests) == 4


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", HEAD + b"zz\r\n", HEAD + piece(token(0)[:5])])
async def test_no_other_error_than_ours_comes_out(answer: bytes) -> None:
    """Given a server that fails in each way every time, Expect Unavailable from events and chat of both clients."""
    async with Stage(*[answer] * 100) as url:
        for ask in (lambda client: client.events("req_1"), lambda client: client.chat({})):
            with pytest.raises(Unavailable):
                await both(url, ask, patience=0.0)
            with pytest.raises(Unavailable), HeadraceClient(url, patience=0.0) as client:
                await asyncio.to_thread(list, ask(client))


async def test_leaving_a_chat_cancels_it() -> None:
    """Given a chat under way, if its reader leaves, Expect its request cancelled by either client."""
    stage = Stage(HEAD + piece(chunk("a", 0)), b"", HEAD + piece(chunk("a", 0)), b"")
    async with stage as url:
        async with AsyncHeadraceClient(url) as client:
            chunks = client.chat_text({})
            assert await anext(chunks) == "a"
            await chunks.aclose()

        def leave() -> None:
            with HeadraceClient(url) as blocking:
                texts = blocking.chat_text({})
                assert next(texts) == "a"
                texts.close()

        await asyncio.to_thread(leave)
    assert [request.split(b" ")[:2] for request in stage.requests[1::2]] == [[b"DELETE", b"/v1/jobs/req_1"]] * 2
