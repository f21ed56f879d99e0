"""Typer's runner of command lines, which builds all commands for each call; this one builds them once."""

from __future__ import annotations

from functools import cache

from typer import testing
from typer.testing import CliRunner, Result

__all__ = ["CliRunner", "Result"]

testing._get_command = cache(testing._get_command)
