"""Containers and documents, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from shared.errors import error_classes
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = {f"HEADRACE_{name}".upper() for name in Settings.model_fields}


def test_compose_uses_existing_settings() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"redis", "api", "worker", "tasks"}
    for role in ("api", "worker", "tasks"):
        assert services[role]["build"]["target"] == role
        assert set(services[role]["environment"]) <= SETTINGS
        assert services[role]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["tasks"]["profiles"] == ["batches"]
    assert services["tasks"]["volumes"] == ["files:/data/files"]
    assert services["api"]["volumes"] == ["accounts:/data", "files:/data/files"]
    assert all(port.startswith("127.0.0.1:") for port in services["api"]["ports"])
    assert "noeviction" in services["redis"]["command"]
    assert "healthcheck" in services["redis"]


@pytest.mark.parametrize("target", ["api", "worker", "tasks"])
def test_images_run_unprivileged_with_a_health_check(target: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    stage = re.split(r"^FROM ", text, flags=re.MULTILINE)
    [found] = [part for part in stage if part.splitlines()[0].endswith(f" AS {target}")]
    assert "USER headrace" in found
    assert "HEALTHCHECK" in found
    assert f'CMD ["headrace", "{target}"]' in found
    assert set(re.findall(r"HEADRACE_[A-Z_]+", text)) <= SETTINGS


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    here = {"config_error", "child_failed"}  # only on the command line
    assert {code for code in error_classes() if f"`{code}`" not in text} <= here
