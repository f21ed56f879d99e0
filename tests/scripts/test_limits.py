"""Findings of scripts/limits in files, functions and folders that are too large."""

from __future__ import annotations

import runpy
from pathlib import Path

LIMITS = Path(__file__).parents[2] / "scripts" / "limits"


def test_sizes_beyond_a_limit_are_found(tmp_path: Path) -> None:
    findings = runpy.run_path(str(LIMITS))["findings"]
    long, deep, *others = paths = [tmp_path / f"m{number}.py" for number in range(17)]
    for path in others:
        path.touch()
    long.write_text("\n" * 350, encoding="utf-8")
    deep.write_text("def f():\n" + "    pass\n" * 49, encoding="utf-8")
    assert list(findings(paths[:16])) == []
    long.write_text("\n" * 351, encoding="utf-8")
    deep.write_text("def f():\n" + "    pass\n" * 50, encoding="utf-8")
    assert list(findings(paths)) == [
        f"{long}: 351 lines (limit 350)",
        f"{deep}:1: f has 51 lines (limit 50)",
        f"{tmp_path}: 17 modules (limit 16)",
    ]
