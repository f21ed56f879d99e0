"""`headrace bench engine --null-model`: what a token costs a worker beside its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.bench.worker import null_model
from headrace.bench.worker.cost import ROWS, Cost, NullModel
from tests.support.checkpoints import CONFIGS, save_checkpoint


def test_every_part_of_a_token_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given a tiny model's tokenizer, a worker on the embedded Valkey runs, and its parts add up."""
    monkeypatch.setattr(null_model, "WARM_STEPS", 3)
    monkeypatch.setattr(null_model, "STEPS", 4)
    monkeypatch.setattr(null_model, "licence_text", lambda: "a river runs to the mill. " * 40)
    null_model.main(str(save_checkpoint(tmp_path / "model", CONFIGS["llama"])), 4, 0, "top-p")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    cost = Cost(**found["cost"])
    assert {"schedule", "inputs", ROWS, "write"} <= cost.parts.keys()
    assert min(cost.parts.values()) > 0
    assert cost.redis >= 0  # counted in ticks of 10 ms, of which a few steps may take none
    assert cost.tokens_per_append >= 1
    assert cost.beside_rows == pytest.approx(cost.total - cost.parts[ROWS])


def test_the_table_has_a_column_for_each_kind_of_sampling() -> None:
    cost = Cost({"schedule": 1.0, ROWS: 20.0, "write": 3.0}, 0.5, 9.0, 7.0, 1.0)
    result = NullModel(256, 49_152, {"greedy": cost, "sampled": cost})
    assert len(result.table().columns) == 3
    assert result.as_dict()["totals"]["greedy"] == {"total": 24.5, "beside_rows": 4.5}
