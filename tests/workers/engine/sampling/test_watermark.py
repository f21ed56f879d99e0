"""Watermarks: their equality with TGI's, what they leave alone, and their detection."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgspec
import pytest
import torch
from pydantic import SecretStr
from transformers import WatermarkLogitsProcessor

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import SamplingParams
from shared.settings import Settings
from tests.support.sequences import make_sequence
from workers.engine.sampling import watermark, watermark_detection
from workers.engine.sampling.sampler import sample
from workers.engine.sampling.watermark import RING, GreenListMark, GumbelMark, TokenMark, make_mark
from workers.engine.sampling.watermark_detection import Detection, binomial_tail, detect
from workers.engine.sequence import Sequence

VOCAB = 500
WARM = SamplingParams(temperature=1.0, seed=3, watermark=True)
MARKS: list[TokenMark] = [GreenListMark(key=5, delta=3.0), GumbelMark(key=5)]


@pytest.fixture
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare texts with fewer places, which takes less time."""
    for module in (watermark, watermark_detection):
        monkeypatch.setattr(module, "RING", 2**12)


def sequence(mark: TokenMark | None, output: list[int], **params: Any) -> Sequence:
    return make_sequence(msgspec.structs.replace(WARM, **params), [1], output, watermark=mark)


def text(mark: TokenMark | None, length: int, seed: int = 3) -> list[int]:
    """Return tokens that are drawn from random logits."""
    rows = torch.randn(length, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    drawn: list[int] = []
    for row in rows:
        [token] = sample(row[None].clone(), [sequence(mark, drawn, seed=seed)])
        assert token is not None
        drawn.append(token)
    return drawn


@pytest.mark.parametrize("previous", [0, 7, 499])
def test_green_list_is_that_of_tgi(previous: int) -> None:
    """transformers has the generator of TGI, as its scheme `lefthash`."""
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    theirs = WatermarkLogitsProcessor(VOCAB, "cpu", greenlist_ratio=0.3, bias=1.5, seeding_scheme="lefthash")
    expected = theirs(torch.tensor([[9, previous]]), row[None].clone())
    GreenListMark(gamma=0.3, delta=1.5).bias(row, [9, previous])
    assert torch.equal(row, expected[0])


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forbidden_token_stays_forbidden(mark: TokenMark, temperature: float) -> None:
    """Given one token that is possible, it is drawn, however much the others are preferred."""
    strong = dataclasses.replace(mark, delta=100.0) if isinstance(mark, GreenListMark) else mark
    for previous in range(20):
        logits = torch.full((1, VOCAB), -torch.inf)
        logits[0, 11] = -1e30
        assert sample(logits, [sequence(strong, [previous], temperature=temperature)]) == [11]


@pytest.mark.parametrize("mark", MARKS)
def test_rows_do_not_depend_on_marked_neighbours(mark: TokenMark) -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    marks = [mark, None, mark, None]
    rows = [sequence(each, [i, 4], seed=i, top_p=0.9) for i, each in enumerate(marks)]
    together = logits.clone()
    drawn = sample(together, rows)
    assert torch.equal(together[1], logits[1])
    assert torch.equal(together[3], logits[3])
    assert drawn == [sample(logits[i : i + 1].clone(), [row])[0] for i, row in enumerate(rows)]


def test_gumbel_mark_does_not_distort_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = [sequence(GumbelMark(key=9), [], seed=seed) for seed in range(20_000)]
    drawn = sample(probs.log().expand(len(rows), 4).clone(), rows)
    counts = torch.bincount(torch.tensor(drawn), minlength=4) / len(rows)
    torch.testing.assert_close(counts, probs, atol=0.012, rtol=0)


def test_gumbel_mark_gives_choices_and_positions_their_own_draws() -> None:
    mark = GumbelMark()
    assert len({mark.noise_key(1, choice, 0) for choice in range(1000)}) == 1000
    assert len({mark.noise_key(1, 0, position) for position in range(1000)}) == 1000
    assert mark.noise_key(1, 0, RING) == mark.noise_key(1, 0, 0)
    assert GumbelMark(2).noise_key(1, 0, 0) != GumbelMark(3).noise_key(1, 0, 0)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": 1}])
def test_gumbel_mark_needs_a_draw(fields: dict[str, Any]) -> None:
    params = msgspec.structs.replace(WARM, **fields)
    with pytest.raises(InvalidRequest, match="temperature") as refused:
        GumbelMark().check(params)
    assert refused.value.param == "watermark"
    GumbelMark().check(WARM)
    GreenListMark().check(params)


@pytest.mark.usefixtures("small_ring")
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_found_with_its_key_alone(mark: TokenMark) -> None:
    marked = text(mark, 100)
    assert detect(mark, marked, VOCAB).p_value < 1e-8
    assert detect(dataclasses.replace(mark, key=6), marked, VOCAB).p_value > 0.01
    assert detect(mark, text(None, 100), VOCAB).p_value > 0.01
    assert detect(mark, [], VOCAB) == Detection(0, 0.0, 1.0)


@pytest.mark.usefixtures("small_ring")
def test_gumbel_mark_is_found_in_a_part_of_another_text() -> None:
    mark = GumbelMark(key=5)
    found = detect(mark, text(None, 64) + text(mark, 128, seed=4)[64:], VOCAB)
    assert found.scored == 64
    assert found.p_value < 1e-8


@pytest.mark.usefixtures("small_ring")
def test_unmarked_tokens_score_high_as_rarely_as_stated() -> None:
    rng = random.Random(1)
    values = [
        detect(GreenListMark(key=key), [rng.randrange(VOCAB) for _ in range(40)], VOCAB).p_value
        for key in range(1, 121)
    ]
    assert sum(value < 0.05 for value in values) <= 12  # 6 are expected at most
    assert sum(value < 0.5 for value in values) > 40
    longer = [rng.randrange(VOCAB) for _ in range(40)]
    assert min(detect(GumbelMark(key), longer, VOCAB).p_value for key in range(1, 6)) > 0.005


def test_a_repeated_pair_is_no_new_evidence() -> None:
    mark = GreenListMark(key=5)
    marked = text(mark, 40)
    assert detect(mark, marked + marked[-1:] + marked[1:], VOCAB).scored <= len(marked) + 1


@pytest.mark.parametrize(("trials", "hits", "share"), [(5, 0, 0.5), (5, 3, 0.5), (5, 5, 0.25), (4, 1, 0.0)])
def test_binomial_tail(trials: int, hits: int, share: float) -> None:
    outcomes = [[i >> bit & 1 for bit in range(trials)] for i in range(2**trials)]
    exact = sum(share ** sum(o) * (1 - share) ** (trials - sum(o)) for o in outcomes if sum(o) >= hits)
    assert binomial_tail(trials, hits, share) == pytest.approx(exact)


def test_settings_make_the_mark() -> None:
    assert make_mark(Settings()) == GreenListMark(15_485_863, 0.5, 2.0)
    assert make_mark(Settings(watermark_algorithm="gumbel", watermark_key=SecretStr("7"))) == GumbelMark(7)
    for key in ("0", "-1", "4294967296", "x", "", "\N{ARABIC-INDIC DIGIT ONE}", "1e3", "9" * 5000):
        with pytest.raises(ConfigError, match=r"from 1 to 4294967295$") as refused:
            make_mark(Settings(watermark_key=SecretStr(key)))
        assert refused.value.param == "watermark_key"
