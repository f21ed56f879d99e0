"""Traced text behaves like a string, and its mask follows its characters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from workers.engine.text.traced_text import Traced, concat, mask_of, trusted

# upper-case letters are the template's, all others the caller's: no operation here changes a letter's case
MIXED = st.text("AB ab", max_size=12)
OPERATIONS: dict[str, Callable[[str, str], str]] = {
    "add": lambda one, other: one + other,
    "add to plain": lambda one, other: "ab" + one,
    "add plain": lambda one, other: one + "ab",
    "join": lambda one, other: one.join([other, "ab", other]),
    "slice": lambda one, other: one[1:-1] + one[::-1],
    "item": lambda one, other: one[0] if one else one,
    "repeat": lambda one, other: one * 2 + 2 * other,
    "strip": lambda one, other: one.strip(),
    "lstrip": lambda one, other: one.lstrip(" Aa"),
    "rstrip": lambda one, other: one.rstrip(" Aa"),
    "removeprefix": lambda one, other: one.removeprefix(other),
    "removesuffix": lambda one, other: one.removesuffix(other),
    "str": lambda one, other: str(one),
}


def traced(text: str) -> Traced:
    return concat(trusted(letter) if letter.isupper() else letter for letter in text)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@given(MIXED, MIXED)
def test_a_mask_follows_its_characters(operation: Callable[[str, str], str], one: str, other: str) -> None:
    found = operation(traced(one), traced(other))
    assert found == operation(one, other)
    assert mask_of(found) == bytes(letter.isupper() for letter in found)


@pytest.mark.parametrize("recase", [str.upper, str.lower, str.title, str.capitalize])
@pytest.mark.parametrize("text", ["aB b", "straße", "ŉa"])
def test_case_changes_keep_the_mask_of_a_text_of_the_same_length(recase: Callable[[str], str], text: str) -> None:
    found = getattr(trusted(text), recase.__name__)()
    assert found == recase(text)
    assert mask_of(found) == bytes([len(found) == len(text)]) * len(found)


def test_an_operation_on_template_text_alone_gives_template_text() -> None:
    for found in (trusted("<%s>") % trusted("a"), trusted("<x>").replace(trusted("x"), trusted("a"))):
        assert (found, mask_of(found)) == ("<a>", b"\1\1\1")
    for found in (trusted("<%s>") % "a", trusted("<x>").replace(trusted("x"), "a"), trusted("<%s>") % (1,)):
        assert mask_of(found) == bytes(3)


def test_an_operation_that_is_not_covered_gives_text_of_callers() -> None:
    for found in ("".join([trusted("a"), ""]), trusted("a").center(3), f"a{trusted('a')}", trusted("a").split()[0]):
        assert mask_of(found) == bytes(len(found))


def test_markup_is_escaped_as_without_tracing() -> None:
    assert trusted("<") + Markup("<b>") == "<" + Markup("<b>")
    assert Markup("<b>") + trusted("<") == Markup("<b>") + "<"
