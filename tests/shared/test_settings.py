"""Settings: precedence of sources, refusals, and the generated document."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console

from headrace.cli.main import app
from headrace.docs_gen.settings import render
from headrace.launcher.supervisor import Child
from headrace.launcher.up import Up
from shared.errors import ConfigError
from shared.settings import Settings, load, to_environment
from tests.support.typer_internals import CliRunner

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
        ("HEADRACE_ROUTING", "nearest", "routing (from environment): Input should be 'pull', 'round-robin', "),
        (
            "HEADRACE_MODEL_ROUTING",
            '{"chat": "nearest"}',
            "model_routing.chat (from environment): Input should be",
        ),
        ("HEADRACE_MODEL_ROUTING", "[1]", "model_routing (from environment)"),
        ("HEADRACE_ROUTING_WEIGHT", "0", "routing_weight (from environment)"),
        ("HEADRACE_SPOT_NOTICES_URL", "http://[::1", "spot_notices_url (from environment): String should match"),
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


ODD = """ "two" 'one' \\ $HOME %s # ; = ünï→😀 {} """
GIVEN = {  # what a pattern or a validator of the setting allows
    "device": "cuda:3",
    "kafka_api_version": "2.6.1",
    "plans": {
        "free": {"requests": "60/minute; 1000/day", "concurrent": 4},
        "paid": {"tokens": "1/5 minutes", "tokens_per_day": 9},
    },
    "default_plan": "free",
    "model_memory": "3GiB",
    "lora_dir": "/tmp/lora",
    "lora_modules": {"sql": "sql-adapter"},
    "vllm_options": {"quantization": "fp8"},
    "upstream_url": "http://127.0.0.1:11434/v1",
    "spot_notices_url": "http://127.0.0.1:1338",
    "otel_endpoint": "http://127.0.0.1:4318",
    "model_routing": {"chat": "prefix-aware"},
    "routing_load_bound": 2.0,
    **dict.fromkeys(("user_requests", "user_tokens", "address_requests"), "7/second;9/5 minutes"),
}


def other(name: str, field: FieldInfo) -> Any:
    """Return a value of a setting that is not its default."""
    if name in GIVEN:
        return GIVEN[name]
    kind = next((part for part in get_args(field.annotation) if part is not type(None)), field.annotation)
    if isinstance(kind, str):  # of a Literal, or of an optional one
        return next(choice for choice in get_args(field.annotation) if choice != field.default)
    if get_args(kind):
        return get_args(kind)[-1]
    if kind is bool:
        return not field.default
    if kind in (int, float):
        bounds = {type(bound).__name__: bound for bound in field.metadata}
        most = next((getattr(bounds[each], each.lower()) for each in ("Le", "Lt") if each in bounds), None)
        start = field.default or getattr(bounds.get("Ge"), "ge", 0)
        return kind(start / 2 + 0.1 if kind is float else start - 1 if start == most else start + 1)
    return {str: ODD, SecretStr: SecretStr(ODD), Path: Path(f"/tmp/{ODD}")}[kind]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_survives_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {each: other(each, Settings.model_fields[each]) for each in {name, "plans"}}
    alone = Settings(**given)
    for variable, value in to_environment(alone).items():
        monkeypatch.setenv(variable, value)
    received = load(file=Path(os.devnull)).settings
    assert received == alone
    assert getattr(received, name) != Settings.model_fields[name].get_default(call_default_factory=True)


def test_a_child_gets_every_setting_of_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child has the launcher's values, whatever a file and the environment say."""
    monkeypatch.chdir(tmp_path)
    Path("headrace.toml").write_text("queue_depth = 5\nunknown = 1\n")
    every = {name: other(name, field) for name, field in Settings.model_fields.items()}
    settings = Settings(**{**every, "metrics_port": None, "queue": "redis"})  # a repository needs that queue
    monkeypatch.setenv("HEADRACE_METRICS_PORT", "1")
    monkeypatch.setenv("HEADRACE_LEASE", "9")
    command = [sys.executable, "-m", "headrace", "config", "show", "--json", "--config", os.devnull]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), **to_environment(settings)}
    child = Child("child", command, environment, tmp_path / "child.log")
    child.start()
    assert child.process is not None
    assert child.process.wait(60) == 0, child.last_line()
    shown = json.loads((tmp_path / "child.log").read_text())
    assert {name: entry["value"] for name, entry in shown.items()} == settings.model_dump(mode="json")


def test_up_hands_on_plans_and_what_it_chose(tmp_path: Path) -> None:
    settings = load({"plans": GIVEN["plans"], "workers": 2, "data_dir": tmp_path}).settings
    up = Up(settings, own_server=False, verbose=False, console=Console())
    chosen = up._child_settings()
    assert (chosen.plans, chosen.port) == (settings.plans, up.port)
    assert chosen.threads == max(1, (os.cpu_count() or 1) // 2)


def test_up_refuses_more_min_workers_than_it_starts(tmp_path: Path) -> None:
    settings = load({"min_workers": 2, "data_dir": tmp_path}).settings
    with pytest.raises(ConfigError, match="min_workers must be at most workers, 1, got 2"):
        Up(settings, own_server=True, verbose=False, console=Console()).run()


def test_an_empty_value_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({"served_model_name": "", "jwt_algorithms": ""}).settings == Settings()


def test_a_nul_character_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model \(from flag\): .*must not contain a NUL character"):
        load({"model": "a\0b"})


def test_config_show_prints_plans(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('default_plan = "free"\n[plans.free]\nrequests = "60/minute; 1000/day"\nconcurrent = 4\n')
    shown = CliRunner().invoke(app, ["config", "show", "--json", "--config", str(file)])
    value = json.loads(shown.stdout)["plans"]["value"]
    assert value == {
        "free": {"requests": "60/minute;1000/day", "tokens": "", "concurrent": 4, "tokens_per_day": None}
    }
    assert CliRunner().invoke(app, ["config", "show", "--config", str(file)]).exit_code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"queue": "kafka", "model_repository": "models"}, "queue must be redis with model_repository"),
        ({"model": "none"}, "model must name a model unless model_repository is set"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}$"):
        load(flags)
