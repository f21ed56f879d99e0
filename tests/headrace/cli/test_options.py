"""Texts that commands read from standard input, and texts of a server that they print."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import options
from headrace.cli.main import app, main
from headrace.client import HeadraceClient
from headrace.client.stream_readers import JobEvent
from shared.errors import ConfigError, HeadraceError
from tests.support.typer_internals import CliRunner

COMMANDS = [("submit", "-"), ("kafka", "submit", "-", "--model", "m", "--bootstrap", "localhost:9")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("text", "problem"), [(b"a mill \xff", "not text in UTF-8"), (b"x" * 30, "at most 20")])
def test_a_prompt_that_is_no_text_is_refused(
    command: tuple[str, ...], text: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent."""
    monkeypatch.setattr(options, "MAX_CHARS", 20)
    done = CliRunner().invoke(app, command, text)
    assert isinstance(done.exception, ConfigError)
    assert problem in done.exception.message


HOSTILE = "a\x1b[31mb\x9b2J\rc\x07[bold]\udc80 [link=http://x]d[/]"
SHOWN = "a[31mb2Jc[bold]\ufffd [link=http://x]d[/]"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
LATENCY = {"median": None, "p95": None}
ADMINISTERED = {
    "/admin/models": {
        "data": [{"name": HOSTILE, "versions": [], "reason": HOSTILE}],
    },
    "/admin/models/m/comparison": {
        "pairs": HOSTILE,
        "compared": 0,
        "exact": None,
        "labels_agree": None,
        "max_difference": None,
        **{f"{name}_latency": LATENCY for name in ("original", "shadow")},
        **{f"{name}_failed": HOSTILE for name in ("original", "shadow")},
    },
    "/admin/queues": {
        "data": [{"model": HOSTILE, "state": HOSTILE, "waiting": 1, "held": 1, "oldest_age": 1.0, "tenants": []}]
    },
    "/admin/queues/m/pause": {"model": HOSTILE, "state": HOSTILE},
}
LETTER = {"id": HOSTILE, "model": HOSTILE, "attempts": 1, "at": 0, "reason": {"code": HOSTILE, "message": HOSTILE}}
JOB = {"id": HOSTILE, "state": HOSTILE}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every text of a server's answer an escape sequence."""

    def events(client: HeadraceClient, job_id: str, after: int) -> list[JobEvent]:
        return [JobEvent(0, "token", {"tokens": [{"text": HOSTILE}]}), JobEvent(1, "done", {})]

    answers: dict[str, Any] = {
        "models": [{"id": HOSTILE, "task": None}],
        "submit": JOB,
        "cancel": JOB,
        "set_asleep": {"model": HOSTILE, "asleep": True},
        "dead_letters": [LETTER],
        "dead_letter": LETTER,
        "replay_dead_letter": JOB,
        "chat_text": (part for part in (HOSTILE,)),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(HeadraceClient, name, lambda *args, _answer=answer, **options: _answer)
    monkeypatch.setattr(HeadraceClient, "events", events)
    monkeypatch.setattr(HeadraceClient, "administer", lambda client, method, path, body=None: ADMINISTERED[path])


@pytest.mark.parametrize(
    "command",
    [
        "models",
        "models list --url http://h",
        "models compare m --url http://h",
        "models sleep m --url http://h",
        "queues list --url http://h",
        "queues pause m --url http://h",
        "dead-letters list",
        "dead-letters show x",
        "dead-letters replay x",
        "submit x",
        "submit x --follow",
        "tail x",
        "cancel x",
        "chat",
    ],
)
def test_no_control_characters_of_a_server_are_printed(
    command: str, hostile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    done = CliRunner().invoke(app, command.split(), "hello\n")
    assert done.exit_code == 0, done.output
    assert CONTROL.search(done.output) is None
    shown = SHOWN if command != "dead-letters show x" else "a\\u001b[31mb2J\\rc\\u0007[bold]\ufffd"
    assert shown in done.output


def test_an_error_of_a_server_controls_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(client: HeadraceClient) -> None:
        raise HeadraceError(HOSTILE)

    monkeypatch.setattr(HeadraceClient, "models", fail)
    monkeypatch.setattr(sys, "argv", ["headrace", "models"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_every_command_prints_by_a_terminal() -> None:
    """A rich Console prints the control characters of a text."""
    sources = {path.name: path.read_text() for path in Path(options.__file__).parent.rglob("*.py")}
    assert [name for name, text in sources.items() if re.search(r"(?<!\w)Console\(", text)] == []
