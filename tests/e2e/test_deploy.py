"""Containers and documents, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import error_classes
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = {f"HEADRACE_{name}".upper() for name in Settings.model_fields}


@pytest.mark.parametrize("target", ["api", "worker", "tasks"])
def test_images_run_unprivileged_with_a_health_check(target: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    stage = re.split(r"^FROM ", text, flags=re.MULTILINE)
    [found] = [part for part in stage if part.splitlines()[0].endswith(f" AS {target}")]
    assert "USER 10001:10001" in found
    assert "HEALTHCHECK" in found
    assert f'CMD ["headrace", "{target}"]' in found
    assert set(re.findall(r"HEADRACE_[A-Z_]+", text)) <= SETTINGS


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    here = {"config_error", "child_failed"}  # only on the command line
    assert {code for code in error_classes() if f"`{code}`" not in text} <= here
