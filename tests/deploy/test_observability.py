"""Rules, dashboards and runbook, as far as they can be checked without Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.support.observability import (
    DASHBOARDS,
    ROOT,
    RULE_TESTS,
    RULES,
    alert_names,
    expressions,
    recorded_names,
    rules,
)

DOCUMENTED = ROOT / "docs" / "metrics.md"
FOREIGN = re.compile(r"up|redis_\w+|process_\w+")  # of Prometheus, redis_exporter and prometheus_client
SUFFIXES = re.compile(r"_(?:bucket|sum|count)$")


def known_names() -> set[str]:
    """Return the names of metrics in the table that is generated from the code."""
    return set(re.findall(r"\b(?:headrace|process)_\w+", DOCUMENTED.read_text()))


def test_every_metric_exists_in_the_code() -> None:
    known = known_names() | recorded_names()
    unknown = {
        (expression.place, name)
        for expression in expressions()
        for name, _ in expression.selectors()
        if not FOREIGN.fullmatch(name) and not {name, SUFFIXES.sub("", name)} & known
    }
    assert unknown == set()


def test_rules_record_what_others_read() -> None:
    read = {name for expression in expressions() for name, _ in expression.selectors()}
    assert recorded_names() - read == set()


def test_every_alert_has_a_section_in_the_runbook() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    assert re.findall(r"^### (.+)$", text, re.MULTILINE) == alert_names()
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
            assert rule["labels"]["severity"] in ("critical", "warning")


def test_every_alert_has_a_promtool_test() -> None:
    text = "".join(path.read_text() for path in RULE_TESTS)
    assert {name for name in alert_names() if name not in text} == set()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_well_formed(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem
    panels = board["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & covered, f"{panel['title']} covers another panel"
        covered |= cells
    used = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])
    }
    assert used - {"__rate_interval"} == {each["name"] for each in board["templating"]["list"]} - {"datasource"}


def test_provisioning_and_rules_are_well_formed() -> None:
    source, provider = (
        yaml.safe_load((ROOT / "deploy/grafana/provisioning" / name).read_text())
        for name in ("datasources/prometheus.yml", "dashboards/headrace.yml")
    )
    assert source["datasources"][0]["type"] == "prometheus"
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
    assert len(DASHBOARDS) == 4
    groups = [group["name"] for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    assert len(groups) == len(set(groups))
    assert len(alert_names()) == len(set(alert_names()))
