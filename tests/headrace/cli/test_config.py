"""`headrace config show`."""

from __future__ import annotations

import pytest

from headrace.cli.config import show
from shared.settings import Settings


def test_descriptions_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given descriptions with brackets, expect them in the output: they are not markup."""
    monkeypatch.setenv("COLUMNS", "1000")
    show()
    shown = capsys.readouterr().out
    for field in Settings.model_fields.values():
        assert field.description in shown
