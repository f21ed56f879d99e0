"""Upstream servers that misbehave: each answer ends in a typed error after the allowed attempts, others go on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.protocol import FinishReason, Request, Token
from tests.support.fake_upstream import (
    DONE,
    HEAD,
    Exchange,
    FakeUpstream,
    event,
    json_response,
    response,
    sending,
    streaming,
    text_chunk,
)
from tests.support.runtime_contract import ask
from tests.support.runtime_driver import RuntimeDriver
from tests.support.upstream_faults import BAD, KEY, attempts, badly, endless, settings_for
from workers.runtimes.upstream import run as upstream_run

LONG_LINE = b"data: " + b"x" * 10 * 2**20 + b"\n\n"


BROKEN = {
    "a connection cut before the head": (),
    "a connection cut in the middle": (HEAD + b"5\r\ndata:",),
    "bytes that are not HTTP": (b"\x16\x03\x01\x00 hello\r\n\r\n",),
    "a length above the body's": (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 900\r\n\r\n" + text_chunk(" ok"),
    ),
    "a negative length": (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: -5\r\n\r\n",),
    "another content type": (response("200 OK", b"<html>hello</html>", "content-type: text/html"),),
    "an answer in one piece": (json_response("200 OK", {"choices": [{"index": 0, "text": "all"}]}),),
    "a compressed answer": (
        response("200 OK", b"\x1f\x8b", "content-type: text/event-stream", "content-encoding: gzip"),
    ),
    "a server error": (json_response("500 Internal Server Error", {"error": {"message": "oops"}}),),
    "a header of 70 kB": (response("200 OK", DONE, "content-type: text/event-stream", "x: " + "y" * 70_000),),
    "an unknown status": (b"HTTP/1.1 299 Odd\r\ncontent-length: 0\r\n\r\n",),
}
BROKEN_STREAMS = {
    "no event": (),
    "no finish reason": (text_chunk(" half"), DONE),
    "no end": (text_chunk(" half"),),
    "an end at once": (DONE,),
    "lines that are not events": (b"<html>\n\nhello\n\n",),
    "wrong JSON": (b"data: {nonsense\n\n",),
    "JSON that is no object": (b"data: [1, 2]\n\n",),
    "bytes that are not UTF-8": (b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n',),
    "JSON nested too deep": (b"data: " + b"[" * 100_000 + b"\n\n",),
    "a line of 10 MB": (LONG_LINE,),
    "10 MB without an end of line": (LONG_LINE.rstrip(),),
    "text of another type": (event({"choices": [{"index": 0, "text": 7}]}),),
    "choices of another type": (event({"choices": "none"}),),
    "an index out of range": (event({"choices": [{"index": 5, "text": "x"}]}),),
    "a negative index": (event({"choices": [{"index": -1, "text": "x"}]}),),
    "arguments without a call": (
        event({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}),
    ),
    "a token id below 0": (event({"choices": [{"index": 0, "text": "x", "token_ids": [-7]}]}),),
    "a token id of 64 bits": (event({"choices": [{"index": 0, "text": "x", "token_ids": [2**63]}]}),),
    "4 MB of lines without data": (b"data:\n" * 900_000,),
    "negative counts": (event({"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 2}}), DONE),
    "bytes of a token out of range": (
        event(
            {"choices": [{"text": "x", "logprobs": {"content": [{"token": "x", "logprob": -1, "bytes": [999]}]}}]}
        ),
    ),
    "an answer given up": (text_chunk(" half", "abort"), DONE),
    "an error after the beginning": (text_chunk(" half"), event({"error": {"message": "out of memory"}})),
    "an error in words": (event({"error": "out of memory"}),),
}

SIGNS_OF_LIFE = {  # none is a part of an answer
    "comments": b": ping\n\n",
    "chunks without a choice": event({"choices": []}),
    "chunks without text": text_chunk(""),
}
COUNTS = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
AFTER_THE_END = {
    "a cut connection": (text_chunk(" a", "stop"), text_chunk(" b")),
    "the same choice in one chunk": (
        event({"choices": [{"index": 0, "text": text, "finish_reason": "stop"} for text in (" a", " b")]}),
        DONE,
    ),
}


@pytest.mark.parametrize(
    "respond",
    [*(sending(*parts) for parts in BROKEN.values()), *(streaming(*parts) for parts in BROKEN_STREAMS.values())],
    ids=[*BROKEN, *BROKEN_STREAMS],
)
def test_a_broken_answer_ends_after_the_allowed_attempts(
    server: FakeUpstream, runtime: RuntimeDriver, respond: Any
) -> None:
    badly(server, respond)
    bad = runtime.start(ask(BAD))
    good = runtime.answer(ask("answer this well", ignore_eos=True))
    ended = runtime.wait(bad)
    assert ended.error is not None
    assert ended.error.code == "upstream_failed"
    assert "attempt 3 of 3" in ended.error.message
    assert attempts(server) == 3
    assert (good.error, len(good.text().split())) == (None, 8)
    runtime.await_idle()


@pytest.mark.parametrize("sign", SIGNS_OF_LIFE.values(), ids=SIGNS_OF_LIFE)
def test_silence_ends_after_the_allowed_attempts(server: FakeUpstream, sign: bytes) -> None:
    badly(server, endless(sign, text_chunk(" half")))
    with RuntimeDriver.of(settings_for(server, upstream_timeout=0.3)) as runtime:
        ended = runtime.answer(ask(BAD))
    assert ended.error is not None
    assert ended.error.code == "upstream_failed"
    assert "silent for 0.3 s" in ended.error.message
    assert attempts(server) == 3


@pytest.mark.parametrize("resume", ["restart", "continue"])
def test_an_answer_that_breaks_off_twice_is_whole(server: FakeUpstream, resume: str) -> None:
    server.owned_by = "vllm"
    with RuntimeDriver.of(settings_for(server, upstream_resume=resume)) as runtime:
        undisturbed = runtime.answer(ask("tell all", 12))
        server.cut_at = [3, 7]
        ended = runtime.answer(ask("tell all", 12))
    assert ended.error is None
    assert ended.text() == undisturbed.text()
    assert ended.usage == undisturbed.usage
    sent = [exchange.body.get("max_tokens") for exchange in server.exchanges]
    assert sent == ([12, 12, 9, 5] if resume == "continue" else [12] * 4)


def test_an_answer_that_breaks_off_may_not_differ(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    starts = iter((" The", " Thus", " The"))

    async def differently(exchange: Exchange) -> None:
        await streaming(text_chunk(next(starts)))(exchange)

    badly(server, differently)
    ended = runtime.answer(ask(BAD))
    assert ended.text() == " The"
    assert ended.error is not None
    assert (ended.error.code, "another text" in ended.error.message) == ("upstream_failed", True)


@pytest.mark.parametrize("chunks", [(" The", " mill"), (" T", "he", " mi", "ll"), (" The mill",)])
def test_a_repetition_may_be_cut_into_other_chunks(
    server: FakeUpstream, runtime: RuntimeDriver, chunks: tuple[str, ...]
) -> None:
    badly(server, streaming(*map(text_chunk, chunks), text_chunk(" turns", "stop"), DONE))
    ended = runtime.answer(ask(BAD), [Token(0, -1, " Th"), Token(0, -1, "e m")])
    assert ended.text() == " The mill turns"
    assert ended.finish_reasons() == {0: FinishReason.STOP}


@pytest.mark.parametrize("parts", AFTER_THE_END.values(), ids=AFTER_THE_END)
def test_nothing_follows_the_end_of_an_answer(
    server: FakeUpstream, runtime: RuntimeDriver, parts: tuple[bytes, ...]
) -> None:
    badly(server, sending(HEAD, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)))
    ended = runtime.answer(ask(BAD))
    assert (ended.error, ended.text(), attempts(server)) == (None, " a", 1)


@pytest.mark.parametrize("after", [b": ping\n\n", text_chunk(" b"), COUNTS], ids=["comments", "text", "counts"])
def test_a_response_without_an_end_does_not_hold_its_answer(
    server: FakeUpstream, runtime: RuntimeDriver, monkeypatch: pytest.MonkeyPatch, after: bytes
) -> None:
    monkeypatch.setattr(upstream_run, "AFTER_END_S", 0.05)
    badly(server, endless(after, text_chunk(" a", "stop")))
    ended = runtime.answer(ask(BAD))
    assert (ended.error, ended.text(), attempts(server)) == (None, " a", 1)
    runtime.await_idle()


def test_counts_of_64_bits_are_ignored(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    counts = event({"choices": [], "usage": {"prompt_tokens": 2**62, "completion_tokens": 1}})
    badly(server, streaming(text_chunk(" a", "stop"), counts, DONE))
    ended = runtime.answer(ask(BAD))
    assert (ended.error, ended.text(), ended.usage) == (None, " a", None)


def test_a_byte_order_mark_hides_no_chunk(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    badly(server, streaming(b"\xef\xbb\xbf" + text_chunk(" a"), text_chunk(" b", "stop"), DONE))
    assert runtime.answer(ask(BAD)).text() == " a b"


def test_fail_ends_an_answer_that_has_begun(server: FakeUpstream) -> None:
    with RuntimeDriver.of(settings_for(server, upstream_resume="fail")) as runtime:
        server.cut_at = [0]
        assert runtime.answer(ask("nothing yet")).error is None
        server.cut_at = [2]
        begun = runtime.answer(ask("in the middle"))
        taken_over = runtime.answer(ask("elsewhere"), [Token(0, -1, " w1")])
    for ended in (begun, taken_over):
        assert ended.error is not None
        assert ended.error.code == "upstream_failed"


def test_the_log_of_an_endless_answer_is_bounded(server: FakeUpstream) -> None:
    badly(server, endless(text_chunk(" more")))
    with RuntimeDriver.of(settings_for(server, log_tokens=50)) as runtime:
        ended = runtime.answer(ask(BAD, None))
        runtime.await_idle()
    assert ended.error is None
    assert ended.finish_reasons() == {0: FinishReason.LENGTH}
    assert len(ended.tokens) == 51


def test_an_abort_closes_the_connection(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    server.gate.clear()
    run = runtime.start(ask("wait for me", 100))
    runtime.wait(run, tokens=1)
    runtime.thread.abort(run)
    runtime.await_idle()
    server.await_gone(0)


def test_a_lost_server_holds_requests_back_until_it_returns(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    """Given running answers, if the server is killed and starts again, they are whole; the fault is reported."""
    server.gate.clear()
    requests: list[Request] = [ask(f"number {i}", 6) for i in range(4)]
    runs = [runtime.start(request) for request in requests]
    for run in runs:
        runtime.wait(run, tokens=2)
    server.hang_up()
    runtime.await_stats(lambda stats: "cannot be reached" in stats.fault)
    server.gate.set()
    server.listen()
    ended = [runtime.wait(run) for run in runs]
    runtime.await_stats(lambda stats: not stats.fault)
    assert [answer.error for answer in ended] == [None] * 4
    assert [answer.text() for answer in ended] == [server.text(request.prompt, 6) for request in requests]


def test_the_key_is_sent_to_the_server_alone(server: FakeUpstream, runtime: RuntimeDriver) -> None:
    runtime.answer(ask("with a key"))
    assert server.exchanges[0].headers["authorization"] == f"Bearer {KEY}"
    assert json.dumps(server.exchanges[0].body).count(KEY) == 0


def test_a_proxy_of_the_environment_leads_elsewhere(server: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    elsewhere = "http://models.example/v1"
    with RuntimeDriver.of(settings_for(server, upstream_url=elsewhere)) as runtime:
        assert runtime.answer(ask("hello")).error is None
    assert [exchange.path for exchange in server.exchanges] == [f"{elsewhere}/completions"]
