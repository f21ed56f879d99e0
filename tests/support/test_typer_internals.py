"""Command lines are built once."""

from __future__ import annotations

import pytest
from typer import main

from headrace.cli.main import app
from tests.support.typer_internals import CliRunner


def test_commands_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    monkeypatch.setattr(main, "get_group", lambda *_: pytest.fail("the commands were built before"))
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
