"""Parser of a streamed answer, with its bytes split in any way."""

from __future__ import annotations

import pytest

from headrace.bench.harness.timed_stream import AnswerStream, Sample, StreamFailed
from tests.support.fake_openai_server import DONE, ROLE, USAGE, chunked, text


def read(data: bytes, size: int | None = None) -> Sample:
    sample = Sample(scheduled=0.0)
    stream = AnswerStream(sample)
    step = size or len(data)
    for at in range(0, len(data), step):
        stream.feed(data[at : at + step])
    return sample


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
def test_the_split_of_the_bytes_does_not_matter(size):
    """Given an answer with characters of several bytes, comments and an empty first chunk,
    If it comes in pieces of any size,
    there are the same two arrivals and the server's counts.
    """
    data = chunked(b": keepalive\n\n", ROLE, text("Grüße"), b": keepalive\n\n", text(" 水車🎡"), USAGE, DONE)

    sample = read(data, size)

    assert (len(sample.arrivals), sample.output_tokens, sample.prompt_tokens) == (2, 2, 7)


def test_lines_may_end_with_cr_lf():
    """Given a server that ends its lines with CR LF, the result is the same."""
    sample = read(chunked((text("a") + text("b") + USAGE + DONE).replace(b"\n", b"\r\n")))

    assert (len(sample.arrivals), sample.output_tokens) == (2, 2)


def test_completions_have_text_instead_of_a_delta():
    """Given chunks of the older API, their texts are counted."""
    sample = read(chunked(b'data: {"choices": [{"text": "a"}]}\n\n', USAGE, DONE))

    assert len(sample.arrivals) == 1


def test_a_token_without_text_is_valid():
    """Given an answer whose only token has no text, it is counted, without an arrival."""
    sample = read(chunked(ROLE, USAGE, DONE))

    assert (sample.arrivals, sample.output_tokens) == ([], 2)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater", "HTTP 503"),
        (
            chunked(text("a"), b'data: {"error": {"code": "engine_failed", "message": "x"}}\n\n'),
            "stream error engine_failed",
        ),
        (chunked(text("a"), b'data: {"error": "x"}\n\n'), "stream error"),
        (chunked(text("a"), b"data: {oops\n\n"), "malformed event"),
        (chunked(text("a"), b'data: {"choices": 3}\n\n'), "malformed event"),
        (chunked(text("a"), USAGE), "stream without [DONE]"),
        (chunked(text("a"), DONE), "no usage"),
        (chunked(b"data: " + b"x" * (2**20 + 1)), "oversized event"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "malformed HTTP"),
    ],
)  # fmt: skip
def test_failures_are_sorted_by_kind(data, kind):
    """Given an answer that fails, the error is its kind, without the server's message."""
    with pytest.raises(StreamFailed) as failure:
        read(data)

    assert str(failure.value) == kind


def test_an_answer_is_complete_only_at_its_end():
    """Given an answer without its last byte, it is incomplete until that byte arrives."""
    data = chunked(text("a"), USAGE, DONE)
    stream = AnswerStream(Sample(0.0))

    stream.feed(data[:-1])
    before = stream.complete
    stream.feed(data[-1:])

    assert (before, stream.complete) == (False, True)
