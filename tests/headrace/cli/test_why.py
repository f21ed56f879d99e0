"""`headrace why`: the bar of a timeline, and the command against a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.cli.main import app
from headrace.cli.why import bar, parts_of
from shared.errors import HeadraceError
from tests.support.typer_internals import CliRunner

QUEUED = {"name": "queued", "start": 10.0, "end": 12.0, "worker": None, "preempted": 0.0}
DECODE = {"name": "decode", "start": 12.0, "end": 20.0, "worker": "w1", "preempted": 2.0}
TIMELINE = {
    "summary": "6.0 s of 10.0 s (60 %) went into writing 5 tokens on worker w1.",
    "created_at": 10.0,
    "seconds": 10.0,
    "phases": [QUEUED, DECODE],
    "positions": [{"at": 10.0, "position": 3}, {"at": 11.5, "position": 1}],
    "prompt_tokens": 600,
    "cached_tokens": 512,
    "completion_tokens": 5,
    "tokens_per_s": 0.667,
    "events": [
        {"name": "admitted", "at": 10.0},
        {"name": "queued", "at": 10.0, "position": 3},
        {"name": "preempted", "at": 15.0, "worker": "w1", "count": 1, "seconds": 2.0},
        {"name": "ended", "at": 20.0, "tokens": 5, "finish": "stop"},
    ],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.HeadraceClient.timeline", lambda self, job_id: {**TIMELINE, "id": job_id})


def test_a_bar_has_cells_in_proportion_to_time() -> None:
    assert bar(parts_of(TIMELINE), 20).plain == "░" * 4 + "█" * 12 + "▒" * 4
    assert bar([("queued", 1.0, None), ("decode", 2.0, None)], 10).plain == "░" * 3 + "█" * 7
    assert bar([], 10).plain == ""
    assert bar([("new", 1.0, None), ("decode", 1.0, None)], 4).plain == "??██"


def test_why_prints_the_sentence_the_bar_and_the_events(server: None) -> None:
    result = CliRunner().invoke(app, ["why", "req_1"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(TIMELINE["summary"] + "\n")
    for text in ("preempted", "2.000", "20.0", "5.000 s", "1 ×, 2.000 s", "5 tokens, stop", "position 3"):
        assert text in result.output
    assert "\nposition in the queue: 3 after 0.0 s, 1 after 1.5 s\n" in result.output
    assert "\nprompt: 600 tokens, 512 from the prefix cache; answer: 5 tokens, 0.7 per second\n" in result.output


def test_why_prints_the_timeline_as_json(server: None) -> None:
    result = CliRunner().invoke(app, ["why", "req_1", "--json"])
    assert json.loads(result.output) == {**TIMELINE, "id": "req_1"}


@pytest.mark.parametrize(
    "changed",
    [
        {"phases": None},
        {"phases": [{**DECODE, "name": 1}]},
        {"phases": [{**DECODE, "end": 1e300}]},
        {"phases": [{**DECODE, "start": float("nan")}]},
        {"events": [{"name": "ended"}]},
        {"positions": [1]},
        {"prompt_tokens": "600"},
        {"summary": None},
    ],
)
def test_an_answer_that_is_no_timeline_is_refused(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.HeadraceClient.timeline", lambda self, job_id: {**TIMELINE, **changed})
    done = CliRunner().invoke(app, ["why", "req_1"])
    assert isinstance(done.exception, HeadraceError)
    assert "the answer of the server is not a timeline" in done.exception.message


def test_a_hostile_timeline_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given names with escape sequences and markup, and a preemption longer than its phase."""
    text = "a\x1b[31mb[link=http://x]"
    phase = {"name": text, "start": 5.0, "end": 6.0, "worker": text, "preempted": 1e9}
    event = {"name": text, "at": 0.0, "worker": text, "finish": text, "count": 1}
    hostile = {**TIMELINE, "summary": text, "phases": [phase, {**phase, "preempted": 0.0}], "events": [event]}
    monkeypatch.setattr("headrace.client.HeadraceClient.timeline", lambda self, job_id: hostile)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["why", "req_1"])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert done.output.count("a[31mb[link=http://x]") == 9
