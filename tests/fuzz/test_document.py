"""A short run of scripts/fuzz, the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import fuzz


@pytest.mark.slow
async def test_answers_conform_to_the_openapi_document(tmp_path: Path) -> None:
    """Given cases that the document allows or forbids, no answer is a server error or undocumented."""
    found = await fuzz(tmp_path, cases=200, seed=7, coverage=False)
    assert found.passed, found.text
    assert found.cases >= 200, found.text
