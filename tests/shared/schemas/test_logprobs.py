"""Every token has a name of its own and its exact bytes, in both of OpenAI's forms and in that of jobs."""

from __future__ import annotations

import msgspec

from headrace.batch.kafka_records import to_chat_completion
from shared.protocol import FinishReason, Token, TokenEvent, TokenLogprobs, decode_event, encode
from shared.schemas.native.jobs import Job, JobChoice, Links
from shared.schemas.native.jobs import Logprobs as JobLogprobs
from shared.schemas.openai.logprobs import Logprobs, TextLogprobs

# the two halves of a face after a space, and at the first of them tokens of the same text, whole or not
HALF, OTHER, REST = b" \xf0\x9f", b"\xf0", b"\x98\x8a"
FIRST = TokenLogprobs(
    -0.5,
    ((7, -0.5, " \ufffd"), (8, -1.5, "\ufffd"), (9, -2.0, "\ufffd"), (10, -3.0, "a"), (11, -4.0, "a")),
    " \ufffd",
    {7: HALF, 8: OTHER},
)
SECOND = TokenLogprobs(-0.1, (), "\ufffd", {5: REST})
END = TokenLogprobs(-0.2, (), "<eos>", {2: b""})
TOKENS = [Token(0, 7, "", None, FIRST), Token(0, 5, " 😊", None, SECOND), Token(0, 2, "", FinishReason.STOP, END)]


def test_bytes_of_all_tokens_are_those_of_the_text() -> None:
    found = Logprobs.from_tokens(TOKENS)
    assert found is not None
    assert b"".join(bytes(each.bytes) for each in found.content).decode() == " 😊"
    assert [each.token for each in found.content] == [r"bytes: \xf0\x9f", r"bytes:\x98\x8a", "<eos>"]
    assert [(top.token, bytes(top.bytes)) for top in found.content[0].top_logprobs] == [
        (r"bytes: \xf0\x9f", HALF),
        (r"bytes:\xf0", OTHER),
        ("\ufffd", "\ufffd".encode()),
        ("a", b"a"),
        ("a", b"a"),
    ]


def test_no_alternative_vanishes_from_the_legacy_form() -> None:
    found = TextLogprobs.from_tokens(TOKENS, 3)
    assert found.top_logprobs[0] == {
        r"bytes: \xf0\x9f": -0.5,
        r"bytes:\xf0": -1.5,
        "\ufffd": -2.0,
        "a": -3.0,
        "token_id:11": -4.0,
    }
    assert (found.tokens, found.text_offset) == ([r"bytes: \xf0\x9f", r"bytes:\x98\x8a", "<eos>"], [3, 3, 5])


def test_logs_of_earlier_versions_keep_their_alternatives() -> None:
    """Given an entry without bytes, the tokens of equal text are named by their ids."""
    event = decode_event(
        b'[0,[[0,7,"",null,[-0.5,[[7,-0.5,"\xef\xbf\xbd"],[8,-1.5,"\xef\xbf\xbd"]],"\xef\xbf\xbd"]]]]'
    )
    found = TextLogprobs.from_tokens(event.tokens, 0)
    assert found.top_logprobs == [{"\ufffd": -0.5, "token_id:8": -1.5}]
    assert event.prompt_usage is None


def test_results_of_earlier_versions_are_read() -> None:
    scored = b'{"text":"a","logprob":-0.5,"top":[{"id":7,"text":"a","logprob":-0.5}]}'
    job = msgspec.json.decode(
        b'{"id":"req_1","model":"m","priority":"batch","state":"completed","created_at":1.0,'
        b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2},"links":{"self":"","events":""},'
        b'"choices":[{"index":0,"text":"a","finish_reason":"stop","logprobs":[%b]}]}' % scored,
        type=Job,
    )
    completion = to_chat_completion(job)
    assert completion["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    [found] = completion["choices"][0]["logprobs"]["content"]
    assert (found["token"], found["bytes"], found["top_logprobs"][0]["bytes"]) == ("a", [97], [97])


def test_bytes_survive_the_log_and_a_result() -> None:
    """Given a job's result from Kafka, the chat completion made of it is the one of the HTTP API."""
    [event] = [decode_event(encode(TokenEvent(0, tuple(TOKENS))))]
    assert event.tokens == tuple(TOKENS)
    choice = JobChoice(0, " 😊", FinishReason.STOP, JobLogprobs.from_tokens(event.tokens))
    job = Job(
        id="req_1",
        model="m",
        priority="batch",
        state="completed",
        created_at=1.0,
        choices=[choice],
        links=Links.from_id("req_1"),
    )
    read = msgspec.json.decode(msgspec.json.encode(job), type=Job)
    completion = to_chat_completion(read)
    assert completion["choices"][0]["logprobs"] == msgspec.to_builtins(Logprobs.from_tokens(TOKENS))
