"""Renders the Helm chart with Go's templates and Sprig, as Helm does, without Helm.

`python -m tests.support.helm_chart` reads values from its standard input, and prints the text of each template.
It is a process of its own, because the Go library ends its process when a template fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "headrace"
INCLUDE = re.compile(r'\binclude ("[\w.]+")')
RELEASE = {"Name": "prod", "Namespace": "llm", "Service": "Helm"}

# values that enable every part of the chart
KEDA = {"autoscaling": {"keda": {"enabled": True, "tokensPerReplica": 2_000_000, "adminKey": {"name": "admin"}}}}
EVERYTHING: dict[str, Any] = {
    "settings": {"grace": 12.5, "log_tokens": 1_048_576, "plans": {"free": {"requests": "60/minute"}}},
    "files": {"create": True},
    "tasks": {"enabled": True},
    "monitoring": {"enabled": True, "adminKey": {"name": "admin"}},
    "podAnnotations": {"example.com/team": "llm"},
    "workers": [
        {"name": "small", "model": "smollm2", "replicas": 2},
        {
            "name": "large",
            "model": "/models/large",
            "servedModelName": "large",
            "replicas": 1,
            "gpus": 2,
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "resources": {"limits": {"memory": "64Gi"}},
            "settings": {"grace": 60},
            "autoscaling": {"hpa": {"enabled": True}},
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
            "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
        },
        {"name": "rare", "model": "rare", "replicas": 1, **KEDA},
        {"name": "tables", "replicas": 1, "settings": {"model_repository": "/models"}},
    ],
}


class ChartError(Exception):
    """A template failed, or the schema refuses the values."""


def default_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.load((CHART / "values.yaml").read_bytes(), yaml.CSafeLoader)
    return values


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge values as Helm does: maps key by key, where null removes a key; anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def check_values(values: dict[str, Any]) -> None:
    """Check values against the chart's schema. Raises ChartError."""
    from jsonschema.exceptions import best_match  # the process that renders needs none

    if error := best_match(_validator().iter_errors(values)):
        raise ChartError(f"{error.json_path}: {error.message}")


@cache
def _validator() -> Validator:
    from jsonschema.validators import validator_for

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    kind = validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def render(over: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the text of each template for the default values changed by `over`. Raises ChartError."""
    values = merged(default_values(), over or {})
    check_values(values)
    return _rendered(json.dumps(values))


@cache
def _rendered(values: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.helm_chart"],
        input=values,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode or not done.stdout.startswith("{"):
        raise ChartError(done.stderr + done.stdout)
    texts: dict[str, str] = json.loads(done.stdout)
    return texts


def objects(over: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the Kubernetes objects that the chart renders to."""
    texts = [text for name, text in render(over).items() if name.endswith(".yaml")]
    return [each for text in texts for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def _with_definitions(text: str, definitions: str) -> str:
    """Write `include NAME` by `tpl` and `template`, which the Go library has."""
    assert "`" not in definitions
    assert not INCLUDE.search(definitions)
    return definitions + INCLUDE.sub(lambda found: f"tpl `{definitions}{{{{template {found[1]} .}}}}`", text)


def _render_all(values: dict[str, Any]) -> dict[str, str]:
    import go_template

    chart = yaml.load((CHART / "Chart.yaml").read_bytes(), yaml.CSafeLoader)
    root = {
        "Values": values,
        "Release": RELEASE,
        "Chart": {key[0].upper() + key[1:]: value for key, value in chart.items()},
    }
    templates = sorted((CHART / "templates").glob("*.*"))
    definitions = (CHART / "templates" / "_helpers.tpl").read_text(encoding="utf-8").strip()
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in (each for each in templates if not each.name.startswith("_")):
            copy = Path(folder) / path.name
            copy.write_text(_with_definitions(path.read_text(encoding="utf-8"), definitions), encoding="utf-8")
            texts[path.name] = go_template.render(copy, root).decode()
    return texts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_render_all(json.load(sys.stdin))))
