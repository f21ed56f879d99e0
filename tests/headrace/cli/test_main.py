"""Command line: help texts, import costs, and errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from headrace.cli.main import app, main
from tests.support.waiting import LIMIT_S


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each command below a group, with its path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")


COMMANDS = dict(commands(get_command(app), "headrace"))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_parameter_has_help(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


def test_help_imports_no_heavy_packages() -> None:
    heavy = {"torch", "transformers", "httpx", "fastapi", "redis", "sqlalchemy", "kafka", "pydantic"}
    code = f"import sys, headrace.cli.main; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert found.stdout.strip() == "[]"


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["headrace", "models", "--url", "localhost:8000"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    assert capsys.readouterr().err == "error: url must start with http:// or https://, got localhost:8000\n"
