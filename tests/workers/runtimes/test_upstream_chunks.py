"""Chunks of upstream servers as tokens of the log."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.protocol import CallDelta, FinishReason, Token, TokenLogprobs, Usage
from workers.runtimes.upstream.chunks import ChunkReader, parse
from workers.runtimes.upstream.events import EventReader


def tokens(*choices: dict[str, Any], n: int = 1, include_reasoning: bool = True) -> list[Token]:
    reader = ChunkReader(n, include_reasoning=include_reasoning)
    chunks = [parse(msgspec.json.encode({"choices": [choice]})) for choice in choices]
    return [token for chunk in chunks for choice in chunk.choices for token in reader.tokens(choice)]


def delta(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "delta": fields}


def test_a_chunk_is_one_entry() -> None:
    found = tokens(delta(role="assistant", content=""), delta(content="two words"), {"text": " more"})
    assert found == [Token(0, -1, "two words"), Token(0, -1, " more")]


def test_each_id_is_one_entry() -> None:
    found = tokens({"text": "ab", "token_ids": [5, 6], "finish_reason": "stop", "stop_reason": "c"})
    assert found == [Token(0, 5, ""), Token(0, 6, "ab", FinishReason.STOP, stop_reason="c")]


def test_reasoning_is_kept_apart() -> None:
    given = delta(reasoning_content="hm"), delta(reasoning=" so"), delta(content="yes")
    assert tokens(*given) == [
        Token(0, -1, "", reasoning="hm", is_reasoning=True),
        Token(0, -1, "", reasoning=" so", is_reasoning=True),
        Token(0, -1, "yes"),
    ]
    assert [token.reasoning for token in tokens(*given, include_reasoning=False)] == ["", "", ""]


def call(index: int | None, name: str | None = None, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, "function": {"name": name, "arguments": arguments}, **fields}])


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        (
            [call(0, "a", "", id="x"), call(0, None, "{"), call(0, None, "}"), call(1, "b", "{}", id="y")],
            [(0, "a", ""), (0, "", "{"), (0, "", "}"), (1, "b", "{}")],
        ),
        ([call(0, "a", "{", id="x"), call(0, "a", "}", id="x")], [(0, "a", "{"), (0, "", "}")]),
        ([call(0, "a", "{}", id="x"), call(0, "a", "{}", id="y")], [(0, "a", "{}"), (1, "a", "{}")]),
        ([call(None, "a", "{}"), call(None, "b", "{}")], [(0, "a", "{}"), (1, "b", "{}")]),
    ],
    ids=["parts", "repeated name", "repeated index", "no index"],
)
def test_calls_are_numbered_in_their_order(given: list[dict[str, Any]], calls: list[tuple[int, str, str]]) -> None:
    assert [found for token in tokens(*given) for found in token.calls] == [CallDelta(*each) for each in calls]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("eos_token", FinishReason.STOP),
        ("because", FinishReason.STOP),
    ],
)
def test_finish_reasons_are_the_servers(given: str, expected: FinishReason) -> None:
    assert tokens({"text": "", "finish_reason": given}) == [Token(0, -1, "", expected)]


def test_log_probabilities_of_a_chat() -> None:
    top = [{"token": "a", "logprob": -1.0, "bytes": [97]}, {"token": "\ufffd", "logprob": -2.0, "bytes": [240]}]
    score = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": top}
    [token] = tokens({**delta(content="a"), "logprobs": {"content": [score]}})
    exact = {-2: b"\xf0"}
    assert token.logprobs == TokenLogprobs(-1.0, ((-1, -1.0, "a"), (-2, -2.0, "\ufffd")), "a", exact)


def test_log_probabilities_of_a_completion() -> None:
    given = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"a": -1.0, "x": -3.0}, None]}
    first, second = tokens({"text": "ab", "logprobs": given})
    assert (first.text, second.text) == ("", "ab")
    assert first.logprobs == TokenLogprobs(-1.0, ((-1, -1.0, "a"), (-2, -3.0, "x")), "a")
    assert second.logprobs == TokenLogprobs(-2.0, (), "b")


def test_usage_is_the_servers() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 2}}
    chunk = parse(
        msgspec.json.encode({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, **details}})
    )
    assert chunk.usage is not None
    assert chunk.usage.usage() == Usage(7, 5, 2, 3)


STREAM = b': hello\r\n\r\nevent: x\ndata: {"a":1}\r\n\r\ndata:two\ndata: lines\n\nid: 5\n\ndata: last\n'


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_do_not_depend_on_where_they_are_cut(size: int) -> None:
    reader = EventReader()
    found = [data for at in range(0, len(STREAM), size) for data in reader.feed(STREAM[at : at + size])]
    assert [*found, *reader.end()] == [b'{"a":1}', b"two\nlines", b"last"]


def test_events_that_arrive_alone_are_read_as_in_one_piece() -> None:
    parts = [b"data: 1\n\n", b"data:  2\n\n", b"data: 3\ndata: 4\n\n", b"data: 5\r\n\n", b"data: "]
    parts += [b"data: 6\n\n", b"data: 7\n", b"data: 8\n\n", b"\xef\xbb\xbfdata: 9\n\n", b"id: 1\n\n"]
    parts += [b"data: 10\n\ndata: 11\n\n"]
    alone, whole = EventReader(), EventReader()
    found = [data for part in parts for data in alone.feed(part)]
    assert found == whole.feed(b"".join(parts))
    assert found[:3] == [b"1", b" 2", b"3\n4"]
