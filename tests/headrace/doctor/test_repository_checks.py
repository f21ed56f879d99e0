"""Checks of the model repository."""

from __future__ import annotations

from pathlib import Path

from headrace.doctor.repository_checks import examine_repository
from shared.settings import Settings
from tests.support.model_repository import write_config, write_model


def test_each_model_of_the_repository_is_examined(settings: Settings, tmp_path: Path) -> None:
    write_model(tmp_path, "good", 2)
    write_model(tmp_path, "tuned")
    write_config(tmp_path, "tuned", "optimization { priority: PRIORITY_MAX }")
    write_model(tmp_path, "wrong")
    write_config(tmp_path, "wrong", "max_batch_sice: 1")
    findings = examine_repository(settings.model_copy(update={"model_repository": tmp_path}))
    found = {finding.what: finding for finding in findings}
    assert (found["model repository"].status, "3 models" in found["model repository"].found) == ("ok", True)
    assert found["model good"].found == "onnxruntime, versions 2"
    assert (found["model tuned"].status, "optimization" in found["model tuned"].found) == ("warning", True)
    assert (found["model wrong"].status, "max_batch_sice" in found["model wrong"].found) == ("failed", True)


def test_a_repository_that_cannot_be_read_is_named(settings: Settings, tmp_path: Path) -> None:
    [finding] = examine_repository(settings.model_copy(update={"model_repository": tmp_path / "none"}))
    assert finding.status == "failed"
    assert "none cannot be read" in finding.found


def test_without_a_repository_nothing_is_examined(settings: Settings) -> None:
    assert examine_repository(settings) == []
