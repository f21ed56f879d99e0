"""Tests of splits of traffic and of shadow copies."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from shared.errors import InvalidRequest
from shared.repository.traffic.rules import (
    MAX_BRANCHES,
    MAX_NAMES,
    Branch,
    Shadow,
    Split,
    Traffic,
    check_shadow,
    check_split,
)

VALUES = [f"value-{i}" for i in range(2000)]


def split(*weights: float, name: str = "m") -> Split:
    branches = tuple(Branch(model="m", version=str(i), weight=weight) for i, weight in enumerate(weights, 1))
    return Split(name=name, branches=branches)


def test_alias_takes_its_only_branch() -> None:
    assert {split(1).choose(value).version for value in VALUES} == {"1"}


def test_shares_follow_the_weights() -> None:
    counts = Counter(split(8, 0, 2).choose(value).version for value in VALUES)
    assert set(counts) == {"1", "3"}
    assert counts["3"] == pytest.approx(0.2 * len(VALUES), abs=4 * math.sqrt(0.16 * len(VALUES)))


def test_same_value_takes_the_same_branch() -> None:
    assert [split(1, 1).choose(value) for value in VALUES] == [split(1, 1).choose(value) for value in VALUES]


def test_growing_canary_keeps_its_callers() -> None:
    small = {value for value in VALUES if split(9, 1).choose(value).version == "2"}
    large = {value for value in VALUES if split(5, 5).choose(value).version == "2"}
    assert small < large


def test_names_are_split_independently() -> None:
    first = [split(1, 1, name="a").choose(value).version for value in VALUES]
    second = [split(1, 1, name="b").choose(value).version for value in VALUES]
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same == pytest.approx(len(VALUES) / 2, abs=4 * math.sqrt(len(VALUES) / 4))


def test_shadow_takes_its_share() -> None:
    shadow = Shadow(name="m", model="n", share=0.1)
    taken = sum(shadow.takes(value) for value in VALUES)
    assert taken == pytest.approx(0.1 * len(VALUES), abs=4 * math.sqrt(0.09 * len(VALUES)))
    assert all(Shadow(name="m", model="n").takes(value) for value in VALUES)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (Split(name="../m", branches=(Branch(model="m"),)), "name"),
        (Split(name="m", branches=()), "branches"),
        (split(*[1.0] * (MAX_BRANCHES + 1)), "branches"),
        (split(0, 0), "branches"),
        (split(1e308, 1e308), "branches"),
        (split(1, -1), "branches[1].weight"),
        (split(1, math.inf), "branches[1].weight"),
        (split(1, math.nan), "branches[1].weight"),
        (Split(name="m", branches=(Branch(model="a b"),)), "branches[0].model"),
        (Split(name="m", branches=(Branch(model="m", version="0"),)), "branches[0].version"),
        (Split(name="m", branches=(Branch(model="m", version="x"),)), "branches[0].version"),
    ],
)
def test_split_without_meaning_is_refused(wrong: Split, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_split(wrong, Traffic())
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (Shadow(name="", model="m"), "name"),
        (Shadow(name="m", model="/m"), "model"),
        (Shadow(name="m", model="m", version="-1"), "version"),
        *((Shadow(name="m", model="m", share=share), "share") for share in (0, -1, 1.1, math.nan)),
    ],
)
def test_shadow_without_meaning_is_refused(wrong: Shadow, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_shadow(wrong, Traffic())
    assert raised.value.param == param


def test_number_of_rules_is_bounded() -> None:
    names = [f"m{i}" for i in range(MAX_NAMES)]
    full = Traffic({name: split(1) for name in names}, {name: Shadow(name=name, model="m") for name in names})
    check_split(split(1, name="m0"), full)
    check_shadow(Shadow(name="m0", model="m"), full)
    with pytest.raises(InvalidRequest, match="at most"):
        check_split(split(1, name="new"), full)
    with pytest.raises(InvalidRequest, match="at most"):
        check_shadow(Shadow(name="new", model="m"), full)
