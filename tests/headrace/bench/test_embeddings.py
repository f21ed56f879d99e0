"""`headrace bench embeddings`: figures of its pairs, and equal work on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from headrace.bench.engine import embeddings, peer_embeddings
from headrace.bench.engine.embeddings import Embeddings, Speed, make_pair, measure_speeds
from shared.errors import HeadraceError
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine


def side(inputs: float, *, work: int = 70) -> dict[int, Speed]:
    return {16: Speed(inputs, inputs * 4, work, 0.01)}


def test_ratios_are_medians_of_pairs() -> None:
    found = Embeddings([make_pair(side(a), side(b)) for a, b in ((100, 50), (50, 50), (120, 100))])
    assert found.as_dict()["ratios"] == {16: 1.2}
    console = Console(width=200)
    with console.capture() as shown:
        console.print(found.table())
    assert "1.20" in shown.get()


def test_unequal_work_is_refused() -> None:
    with pytest.raises(HeadraceError, match="70 tokens, transformers 71"):
        make_pair(side(1), side(1, work=71))


def test_both_sides_count_the_same_tokens(
    minilm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given the real model, transformers counts the tokens of our tokenizer, without padding."""
    monkeypatch.setattr(embeddings, "DURATION_S", 0.01)
    monkeypatch.setattr(embeddings, "BATCH_SIZES", (1, 3))
    peer_embeddings.main(str(minilm), "4-32", 0)
    plain = json.loads(capsys.readouterr().out)
    tokenizer = EncoderEngine.load(EngineConfig(minilm)).tokenizer
    ours = measure_speeds(lambda inputs: sum(len(tokenizer.encode(each)) for each in inputs), "4-32", 0)
    assert {int(batch): speed["work"] for batch, speed in plain.items()} == {
        batch: speed.work for batch, speed in ours.items()
    }
    assert all(speed["inputs"] > 0 for speed in plain.values())
