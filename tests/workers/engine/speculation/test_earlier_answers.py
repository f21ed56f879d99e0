"""Earlier answers of a tenant serve its next ones, within bounds, and never those of another tenant."""

from __future__ import annotations

import random

import pytest

from shared.protocol import SamplingParams
from tests.support.sequences import make_sequence
from workers.engine.sequence import Sequence
from workers.engine.speculation import earlier_answers
from workers.engine.speculation.earlier_answers import EarlierAnswers
from workers.engine.speculation.interface import Draft
from workers.engine.speculation.suffix_automaton import ROOT, SuffixAutomaton


def answered(output: list[int], salt: bytes = b"a") -> Sequence:
    sequence = make_sequence(SamplingParams(), [1, 2, 3], output)
    sequence.prefix_salt = salt
    return sequence


def test_the_longest_match_and_its_last_place_decide() -> None:
    """Given random tokens of a small alphabet, compared with a search of all places."""
    rng = random.Random(5)
    automaton, tokens = SuffixAutomaton(), [rng.randrange(3) for _ in range(120)]
    for token in tokens:
        automaton.append(token)
    state, length, text = ROOT, 0, [rng.randrange(4) for _ in range(90)]
    for end in range(1, len(text) + 1):
        state, length = automaton.advance(state, length, text[end - 1])
        found = [
            (size, place)
            for size in range(1, end + 1)
            for place in range(size, len(tokens) + 1)
            if tokens[place - size : place] == text[end - size : end]
        ]
        longest = max((size for size, _ in found), default=0)
        assert length == longest
        if longest:
            last = max(place for size, place in found if size == longest)
            assert automaton.following(state, 4) == tokens[last : last + 4]


def test_an_answer_is_drafted_from_its_beginning() -> None:
    drafter = EarlierAnswers()
    drafter.remember(answered([5, 6, 7, 8, 9]))
    again = answered([])
    assert drafter.propose(again, 3) == Draft("answers-1", (5, 6, 7))
    again.tokens += [5, 6]
    assert drafter.propose(again, 9) == Draft("answers-2", (7, 8, 9)), "not beyond its end"
    again.tokens += [4]
    assert drafter.propose(again, 3) is None
    again.tokens += [8]
    assert drafter.propose(again, 3) == Draft("answers-1", (9,))


def test_other_salts_see_nothing() -> None:
    drafter = EarlierAnswers()
    drafter.remember(answered([5, 6, 7, 8, 9], b"a"))
    assert drafter.propose(answered([5, 6], b"b"), 3) is None
    drafter.remember(answered([5, 6, 1, 1, 1], b"b"))
    assert drafter.propose(answered([5, 6], b"b"), 2) == Draft("answers-2", (1, 1))
    assert drafter.propose(answered([5, 6], b"a"), 2) == Draft("answers-2", (7, 8))


def test_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used tenant goes first, and the oldest answers of a tenant with many."""
    monkeypatch.setattr(earlier_answers, "MAX_TOKENS", 90)
    monkeypatch.setattr(earlier_answers, "MAX_TENANT_TOKENS", 80)
    drafter = EarlierAnswers()
    drafter.remember(answered(list(range(100, 110)), b"early"))
    drafter.remember(answered(list(range(110, 120)), b"used"))
    follower = answered([110, 111], b"used")
    for number in range(40):
        drafter.remember(answered([number * 10 + place for place in range(10)], b"busy"))
        assert drafter.num_tokens <= 90
        assert drafter.propose(follower, 1) == Draft("answers-2", (112,))
    assert drafter.propose(answered([100], b"early"), 1) is None
    assert drafter.propose(answered([0, 1], b"busy"), 1) is None, "an old answer"
    assert drafter.propose(answered([380, 381], b"busy"), 1) == Draft("answers-2", (382,))
    drafter.remember(answered([7] * 1000, b"long"))
    assert drafter.num_tokens <= 90


def test_a_match_survives_the_loss_of_older_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier_answers, "MAX_TENANT_TOKENS", 40)
    drafter = EarlierAnswers()
    drafter.remember(answered([5, 6, 7, 8, 9]))
    follower = answered([5, 6])
    assert drafter.propose(follower, 1) == Draft("answers-2", (7,))
    drafter.remember(answered(list(range(50, 60))))
    drafter.remember(answered([5, 6, 7, 1, 2, 3, 4, 5, 5, 5]))
    follower.tokens.append(7)
    assert drafter.propose(follower, 2) == Draft("answers-3", (1, 2))
