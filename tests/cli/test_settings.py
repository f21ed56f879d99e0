"""Settings: who wins, what is refused, and that the document tells them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from headrace.cli import app
from headrace.settings_doc import render
from headrace.up import Up
from shared.config import load
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("headrace.toml").write_text("port = 1\nlease = 9\nqueue_depth = 7\n")
    monkeypatch.setenv("HEADRACE_PORT", "2")
    monkeypatch.setenv("HEADRACE_LEASE", "8")

    loaded = load({"port": 3, "model": None})

    settings, origin = loaded.settings, loaded.origin
    assert (settings.port, origin["port"]) == (3, "flag")
    assert (settings.lease, origin["lease"]) == (8, "environment")
    assert (settings.queue_depth, origin["queue_depth"]) == (7, "file")
    assert (settings.model, origin["model"]) == ("smollm2", "default")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("HEADRACE_PORT", "70000", "port (from environment)"),
        ("HEADRACE_KEEPALIVE", "60", "keepalive (from environment)"),
        ("HEADRACE_LEASE", "soon", "lease (from environment)"),
        ("HEADRACE_APPENDFSYNC", "never", "appendfsync (from environment)"),
        ("HEADRACE_LEESE", "3", "HEADRACE_LEESE"),
    ],
)
def test_a_wrong_setting_is_named(variable: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        load()
    assert told in refused.value.message


@pytest.mark.parametrize("text", ["port = ", "unknown = 1"])
def test_a_bad_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load(file=file)
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(file=tmp_path / "none.toml")


def test_config_show_masks_secrets_and_tells_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    shown = CliRunner().invoke(app, ["config", "show", "--json"])
    values = json.loads(shown.stdout)
    assert "hunter2" not in shown.stdout
    assert values["redis_url"]["from"] == "environment"
    assert "hunter2" not in CliRunner().invoke(app, ["config", "show"]).stdout


def test_the_document_of_settings_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == render()


def test_secrets_reach_the_children_whole(tmp_path: Path) -> None:
    """Given secrets of each kind, Expect `headrace up` to hand on what is in them, not how they are shown."""
    secrets = {"redis_url": "redis://:pw@127.0.0.1:1/0", "kafka_password": "hunter2", "webhook_secrets": "whsec_x"}
    settings = load({**secrets, "data_dir": tmp_path}).settings
    environment = Up(settings, own_server=False, verbose=False, console=Console())._environment()
    assert {name: environment[f"HEADRACE_{name.upper()}"] for name in secrets} == secrets
    assert "HEADRACE_KAFKA_USERNAME" not in environment
