"""The file by which ranks find each other."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from workers.engine.parallel.meeting import LEFTOVER_S, meeting_place


def test_only_folders_that_killed_engines_left_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, met, other, link = (
        tmp_path / name for name in ("headrace-ranks-1", "headrace-ranks-2", "other", "headrace-ranks-3")
    )
    for folder in (left, met, other):
        folder.mkdir()
        (folder / "store").touch()
    link.symlink_to(other)
    for folder in (left, other, link):
        os.utime(folder, (1.0, 1.0), follow_symlinks=False)
    with meeting_place() as store:
        assert store.parent.stat().st_mode & 0o777 == 0o700
        assert not left.exists()
        assert {met, other, link, store.parent} == set(tmp_path.iterdir())
    assert not store.parent.exists()
    assert LEFTOVER_S > 900, "no rank takes that long to meet the others"
