"""From a topic through a whole worker to the results, on the scripted engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.backend import Backend
from shared.config import Settings
from shared.kafka import topics
from shared.kafka.message import Outgoing
from tests.kafka.harness import Bench
from workers.scripted import expected, text_of


@pytest.fixture
def bench(settings: Settings, backend: Backend) -> Iterator[Bench]:
    made = Bench(settings, backend)
    yield made
    made.close()


def answer(prompt: str, tokens: int = 3) -> str:
    return "".join(text_of(expected([ord(c) for c in prompt], 0, p)) for p in range(tokens))


async def test_each_request_gets_one_result_and_what_is_none_a_dead_letter(bench: Bench) -> None:
    """Given requests, one of them twice, plain JSON and what is none, Expect each told once, as what it is."""
    good = [bench.ask(f"p{i}", event_id=f"e{i}") for i in range(5)]
    topic = topics.requests(bench.model)
    plain = b'{"model": "%s", "prompt": "plain", "max_tokens": 3}' % bench.model.encode()
    reply = (("reply-topic", bench.results.encode()),)
    bad = [
        Outgoing(topic, b"k", b"{", (("x", b"\xff"),)),
        Outgoing(topic, b"k", plain.replace(bench.model.encode(), b"nobody")),
        Outgoing(topic, b"k", b" " * (bench.settings.max_body_bytes + 1)),
    ]
    await bench.asend(*good, good[2], Outgoing(topic, b"p", plain, reply), *bad)
    async with bench.worker():
        told = await bench.told(6)
        letters = [
            each for each in await bench.read(topics.DEAD_LETTERS, 3) if each.header("headrace-topic") == topic
        ]
    assert sum(map(len, told.values())) == 6
    for i in range(5):
        [job] = told[f"e{i}"]
        assert (job["state"], job["choices"][0]["text"]) == ("completed", answer(f"p{i}"))
    [other] = [jobs for subject, jobs in told.items() if not subject.startswith("e")]
    assert other[0]["priority"] == "batch"
    found = {(letter.header("headrace-error-code"), letter.value) for letter in letters}
    assert found == {
        ("malformed_body", bad[0].value),
        ("model_not_found", bad[1].value),
        ("payload_too_large", bad[2].value),
    }
    assert ("x", b"\xff") in next(letter for letter in letters if letter.value == b"{").headers
