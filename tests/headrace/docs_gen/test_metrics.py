"""docs/metrics.md, and Prometheus' rules for names."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.docs_gen.metrics import render
from shared.metrics.api import API
from shared.metrics.common import COMMON, GPU, KAFKA
from shared.metrics.declaration import PREFIX, Declaration
from shared.metrics.tasks import TASKS
from shared.metrics.worker import WORKER

ALL = [*API, *WORKER, *GPU, *KAFKA, *TASKS, *COMMON]


def test_the_document_of_metrics_is_current() -> None:
    """If it is stale, run scripts/metrics-doc."""
    assert (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8") == render()


@pytest.mark.parametrize("declared", ALL, ids=lambda each: each.name)
def test_names_follow_the_rules(declared: Declaration) -> None:
    assert declared.name.startswith(PREFIX)
    assert not declared.name.endswith(("_total", "_bucket", "_count", "_sum"))
    assert bool(declared.buckets) == (declared.kind == "histogram")
    assert not {"le", "quantile"} & set(declared.labels)
    assert "milli" not in declared.name
    if declared.vllm:
        assert declared.labels[0] == "model"


def test_no_name_is_declared_twice() -> None:
    assert len({each.name for each in ALL}) == len(ALL)
