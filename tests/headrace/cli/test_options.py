"""Texts that commands read from standard input."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from headrace.cli import options
from headrace.cli.main import app
from shared.errors import ConfigError

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
