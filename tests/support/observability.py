"""The rules and dashboards of `deploy/`, and its rules of the adapter: their PromQL, and the metrics in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
RULE_TESTS = sorted((ROOT / "deploy/prometheus/tests").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
ADAPTER = ROOT / "deploy/kubernetes/prometheus-adapter.yaml"
ADAPTED = {"<<.LabelMatchers>>": "", "<<.GroupBy>>": "pod"}  # as the adapter fills them in, for all objects
VARIABLES = {"model": ".*", "class": ".*", "__rate_interval": "1m"}
# a metric's name stands before { or [, or is followed by neither ( nor a character of a name
SELECTOR = re.compile(r"\b(?P<name>(?:headrace|redis|process)[:_][\w:]+|up)\b(?P<labels>\{[^}]*\})?")
GROUPING = re.compile(r"\b(?:by|on|ignoring|without)\s*\([^)]*\)")


@dataclass(frozen=True)
class Expression:
    """A PromQL expression and its place: a rule's name, or a dashboard's and its panel's."""

    place: str
    text: str
    kind: str  # alert, record, panel or adapter

    def selectors(self) -> set[tuple[str, str]]:
        """Return the names of metrics that it reads, each with its label matchers as they are written."""
        return {(found["name"], found["labels"] or "") for found in SELECTOR.finditer(GROUPING.sub("", self.text))}


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def expressions() -> Iterator[Expression]:
    """Yield all expressions, with the variables of dashboards replaced by VARIABLES."""
    for rule in rules():
        kind = "alert" if "alert" in rule else "record"
        yield Expression(rule[kind], rule["expr"], kind)
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                text = re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], target["expr"])
                yield Expression(f"{board['title']}: {panel['title']}", text, "panel")
    adapter = yaml.safe_load(ADAPTER.read_text())["rules"]
    for rule in adapter["custom"] + adapter["external"]:
        text = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        for placeholder, value in ADAPTED.items():
            text = text.replace(placeholder, value)
        yield Expression(rule["name"]["as"], text, "adapter")


def alert_names() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


def recorded_names() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}
