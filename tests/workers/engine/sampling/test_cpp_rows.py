"""Operations on rows of logits in C++ against those in torch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from shared.protocol import SamplingParams
from tests.support.sequences import make_sequence
from workers.engine.config import EngineConfig
from workers.engine.kernels.build import load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.quantization.unquantized import UNQUANTIZED
from workers.engine.sampling.cpp_rows import CppRows
from workers.engine.sampling.torch_rows import TORCH_ROWS
from workers.engine.sampling.watermark import GumbelMark
from workers.engine.sequence import Sequence

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "top-p of zero": SamplingParams(temperature=2.0, top_p=0.0),
    "plain": SamplingParams(temperature=1.0),
    "hot": SamplingParams(temperature=3.0),
    "cold": SamplingParams(temperature=0.05),
    "top-k": SamplingParams(temperature=1.2, top_k=40),
    "top-k of one": SamplingParams(temperature=1.0, top_k=1),
    "top-k of all": SamplingParams(temperature=1.0, top_k=1_000_000),
    "top-p": SamplingParams(temperature=0.8, top_p=0.9),
    "small top-p": SamplingParams(temperature=1.0, top_p=5e-324),
    "large top-p": SamplingParams(temperature=1.0, top_p=1 - 2**-53),
    "min-p": SamplingParams(temperature=1.0, min_p=0.1),
    "min-p of one": SamplingParams(temperature=1.0, min_p=1.0),
    "typical": SamplingParams(temperature=0.9, typical_p=0.8),
    "all": SamplingParams(temperature=1.1, top_k=100, top_p=0.95, min_p=0.01, typical_p=0.9),
}
ROWS = 200


@pytest.fixture(scope="module")
def kernels() -> CppKernels:
    cache = EngineConfig(Path()).cache_dir
    assert cache is not None
    return CppKernels(load_library(cache / "kernels"), UNQUANTIZED)


@pytest.fixture
def rows(kernels: CppKernels) -> CppRows:
    return kernels.rows()


def make_sequences(params: SamplingParams, count: int = ROWS) -> list[Sequence]:
    """Return sequences with different seeds, choices and lengths."""
    return [
        make_sequence(msgspec.structs.replace(params, seed=i * 977), [1], [2] * (i % 5), choice=i % 3)
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "spread"), [(5000, 3.0), (5000, 0.01), (33, 2.0), (1, 1.0)])
def test_the_same_tokens_are_drawn_as_in_torch(rows: CppRows, kind: str, size: int, spread: float) -> None:
    logits = torch.randn(ROWS, size, generator=torch.Generator().manual_seed(size)) * spread
    logits[::7, : size // 3] = -torch.inf
    sequences = make_sequences(KINDS[kind])
    drawn = rows.draw(logits, sequences)
    assert drawn == TORCH_ROWS.draw(logits, sequences)
    assert len(set(drawn)) > 1 or size == 1


def test_a_row_does_not_depend_on_the_others(rows: CppRows) -> None:
    """Given a batch of all kinds, with rows of a watermark, each row alone draws the same token, and twice."""
    sequences = [make_sequences(params, 8)[number] for number in range(8) for params in KINDS.values()]
    for sequence in sequences[::3]:
        sequence.watermark = GumbelMark(5)
    logits = torch.randn(len(sequences), 1000, generator=torch.Generator().manual_seed(1)) * 2
    together = rows.draw(logits, sequences)
    assert together == rows.draw(logits, sequences)
    assert together == TORCH_ROWS.draw(logits, sequences)
    assert together == [rows.draw(logits[i : i + 1], [each])[0] for i, each in enumerate(sequences)]


def test_the_next_position_has_another_draw(rows: CppRows) -> None:
    [sequence] = make_sequences(KINDS["plain"], 1)
    drawn = set()
    for _ in range(30):
        drawn |= set(rows.draw(torch.zeros(1, 3000), [sequence]))
        sequence.tokens.append(7)
    assert len(drawn) > 25


@pytest.mark.parametrize("kind", ["greedy", "plain", "top-p"])
def test_rows_that_are_not_finite_draw_nothing(rows: CppRows, kind: str) -> None:
    """Given NaN within the vectors of a row and at its end, infinity, or nothing that is allowed."""
    logits = torch.zeros(6, 1031)
    logits[1, 4], logits[2, 1030], logits[3, 700], logits[4] = torch.nan, torch.nan, torch.inf, -torch.inf
    logits[5, :1030] = -torch.inf
    drawn = rows.draw(logits, make_sequences(KINDS[kind], 6))
    assert drawn[0] is not None
    assert drawn[1:] == [None, None, None, None, 1030]


@pytest.mark.parametrize("kind", [{}, {"top_k": 3}, {"top_p": 0.9}, {"typical_p": 0.5}])
@pytest.mark.parametrize("temperature", [1e-5, 0.1])
def test_logits_that_overflow_when_divided_draw_no_forbidden_token(
    rows: CppRows, kind: dict[str, float], temperature: float
) -> None:
    """Given a temperature by which finite logits become infinite, the most likely token is drawn."""
    logits = torch.tensor([[-torch.inf, 3e38, 2e38, -3e38], [-torch.inf, -2e38, -3e38, -1e38]])
    sequences = make_sequences(SamplingParams(temperature=temperature, **kind), 2)
    assert rows.draw(logits, sequences) == TORCH_ROWS.draw(logits, sequences) == [1, 3]


@pytest.mark.parametrize("size", [1, 7, 40, 3000])
def test_softmax_and_its_logarithm_match_torch(kernels: CppKernels, size: int) -> None:
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(size)) * 4
    x[1, size // 2] = torch.nan
    x[2, : size // 2] = -torch.inf
    wide = x.double()
    pairs = [
        (kernels.softmax(x), wide.softmax(-1)),
        (kernels.rows().log_softmax(x), wide.log_softmax(-1)),
    ]
    for mine, exact in pairs:
        torch.testing.assert_close(mine.double(), exact, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_rotary_tables_are_rounded_correctly(kernels: CppKernels) -> None:
    """Given angles up to 130,000, cosines and sines are those in double, as float32."""
    frequencies = 1e4 ** -(torch.arange(16) / 16)
    cosines, sines = kernels.rotary_table(frequencies, 130_000)
    places = torch.cat((torch.arange(500), torch.arange(129_000, 130_000)))
    angles = (places.float()[:, None] * frequencies).double()
    for mine, exact in ((cosines, angles.cos()), (sines, angles.sin())):
        torch.testing.assert_close(mine[places], exact.float(), rtol=1e-7, atol=1e-9)
