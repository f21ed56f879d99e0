"""Conclusions of scripts/audit from the output of pip-audit and pip."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit.py"
SAFE = {"name": "safe", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}
FLAWED = {"name": "flawed", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}


@pytest.fixture(scope="module")
def audit() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_only_known_vulnerabilities_fail(audit: dict[str, Any]) -> None:
    assert audit["vulnerabilities"]([SAFE, UNKNOWN])[1] == 0
    lines, status = audit["vulnerabilities"]([SAFE, FLAWED])
    assert status == 1
    assert lines[0] == "VULNERABLE flawed 2.0: CVE-1, fixed in 2.1"


def test_a_skipped_package_is_reported_as_not_checked(audit: dict[str, Any]) -> None:
    lines, _ = audit["vulnerabilities"]([SAFE, UNKNOWN])
    assert lines == [
        "1 of 2 pins checked, 0 vulnerabilities",
        "NOT CHECKED, unknown to the vulnerability service: unknown",
    ]


def test_newer_releases_of_pins_are_listed(audit: dict[str, Any]) -> None:
    listed = [
        {"name": "typing_extensions", "version": "4.16.0", "latest_version": "4.17.0"},
        {"name": "pip", "version": "1", "latest_version": "2"},
    ]
    assert audit["newer"](listed, ["typing-extensions", "redis"]) == [
        "1 of 2 pins have a newer release",
        "  typing_extensions 4.16.0 -> 4.17.0",
    ]


def test_a_tool_that_prints_nothing_is_not_an_answer(audit: dict[str, Any]) -> None:
    assert audit["run"](["false"]) is None
    assert audit["run"](["echo", "[1]"]) == [1]
