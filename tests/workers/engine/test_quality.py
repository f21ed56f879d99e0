"""`bench perplexity` and `bench engine --profile` on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from headrace.bench.engine import engine_rates
from headrace.bench.engine.perplexity import FORMATS, WINDOW_TOKENS, FormatQuality, measure_perplexity
from headrace.bench.engine.perplexity_texts import TEXTS
from headrace.bench.engine.profile import Profile, profile
from headrace.bench.harness.workload import Lengths, make_mix
from shared.errors import ConfigError


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_long_enough_and_reproducible(name: str) -> None:
    text = TEXTS[name]()
    assert len(text) > 50_000
    assert text == TEXTS[name]()


def test_perplexity_of_a_random_model(llama: Path) -> None:
    """A random byte-level model predicts almost nothing, in any format."""
    texts, tokens = ["licences", "code"], WINDOW_TOKENS + 101
    copy = {"copy": str(llama)}
    quality = measure_perplexity(str(llama), texts, tokens, list(FORMATS), copy, Console(quiet=True))
    assert quality.tokens == WINDOW_TOKENS + 100
    assert list(quality.texts) == ["licences", "code", "all"]
    for text in quality.texts.values():
        assert list(text) == ["float32", "int8", "int4", "copy"]
        float32 = text["float32"]
        assert 100 < float32.perplexity < 100_000
        assert text["copy"] == float32 == FormatQuality(float32.perplexity, 0.0, 1.0)
        assert abs(text["int8"].increase) < 0.05
        assert 0.3 < text["int4"].agreement < text["int8"].agreement < 1
        assert math.isclose(text["int4"].perplexity, float32.perplexity * (1 + text["int4"].increase))
    product = math.prod(quality.texts[text]["int4"].perplexity for text in texts)
    assert math.isclose(quality.texts["all"]["int4"].perplexity, math.sqrt(product), rel_tol=1e-6)
    assert quality.as_dict()["texts"]["all"]["copy"]["agreement"] == 1
    assert quality.table().row_count == len(quality.texts["all"])


def test_text_that_is_too_short_is_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match="must be at most"):
        measure_perplexity(str(llama), ["code"], 10**8, [], {}, Console(quiet=True))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_parts_of_a_profile_add_up(llama: Path, monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    monkeypatch.setenv("HEADRACE_QUANTIZATION", quantization)
    small = make_mix(1, 8, prompts=Lengths(4, 16), outputs=Lengths(4, 20))
    for mix in ("peer_mix", "warmup_mix"):
        monkeypatch.setattr(f"headrace.bench.engine.profile.{mix}", lambda *_: small)
    found = profile(str(llama), 0, 4)
    assert math.isclose(sum(found.parts.values()), found.total)
    assert all(seconds > 0 for seconds in found.parts.values())
    assert {"matrix products", "output head", "attention", "sampling", "scheduling"} <= found.parts.keys()
    assert found.floor > 0
    assert Profile(**dataclasses.asdict(found)).share_of_floor == found.share_of_floor


def test_rate_counts_all_tokens(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = make_mix(1, 6, prompts=Lengths(4, 16), outputs=Lengths(4, 20))
    monkeypatch.setattr(engine_rates, "make_mix", lambda seed, count: items[:count])
    engine_rates.main(str(llama), 2, 6, 0)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["tokens"] == sum(item.output_tokens for item in items)
    assert found["rate"] > 0
    assert found["first_token"] > 0
