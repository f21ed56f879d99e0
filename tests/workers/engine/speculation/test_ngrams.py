"""N-grams find what followed the last tokens earlier."""

from __future__ import annotations

import pytest

from shared.protocol import SamplingParams
from tests.support.sequences import make_sequence
from workers.engine.speculation import ngrams
from workers.engine.speculation.interface import Draft
from workers.engine.speculation.ngrams import NgramDrafter


def test_the_longest_ngram_and_its_last_occurrence_decide() -> None:
    sequence = make_sequence(SamplingParams(), [1, 2, 3, 4, 9, 2, 3, 5, 2, 3, 6, 1, 2], [3])
    drafter = NgramDrafter()
    assert drafter.propose(sequence, 3) == Draft("ngram-3", (4, 9, 2))
    sequence.tokens += [8, 2, 3]
    assert drafter.propose(sequence, 4) == Draft("ngram-2", (8, 2, 3, 8)), "the last occurrence, which goes on"
    sequence.tokens += [99, 98]
    assert drafter.propose(sequence, 4) is None
    sequence.tokens += [4]
    assert drafter.propose(sequence, 4) == Draft("ngram-1", (9, 2, 3, 5))
    long = make_sequence(SamplingParams(), [*range(10, 20), *range(10, 18)], [])
    assert NgramDrafter().propose(long, 2) == Draft("ngram-8", (18, 19))


def test_tokens_beyond_the_bound_are_not_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "MAX_INDEXED_TOKENS", 4)
    sequence = make_sequence(SamplingParams(), [1, 2, 3, 4, 5, 6, 7, 5, 6], [])
    drafter = NgramDrafter()
    assert drafter.propose(sequence, 2) is None
    sequence.tokens += [1, 2]
    assert drafter.propose(sequence, 2) == Draft("ngram-2", (3, 4))
