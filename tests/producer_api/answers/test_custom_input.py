"""The text of a custom tool's call, from the pieces of its arguments."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer_api.answers.custom_input import CustomInput


def decoded(pieces: list[str]) -> str:
    decoder = CustomInput()
    return "".join([*(decoder.feed(piece) for piece in pieces), decoder.end()])


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 200)),
    indent=st.sampled_from([None, 1]),
)
def test_pieces_of_any_size_give_the_text(text: str, ascii_only: bool, cuts: list[int], indent: int | None) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only, indent=indent)
    places = sorted({0, len(arguments), *(cut for cut in cuts if cut < len(arguments))})
    assert decoded([arguments[begin:end] for begin, end in pairwise(places)]) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\', "a"),
        ('{"input": "a\\ud83d', "a"),
        ('{"input": "a\\ud83dx"}', "a?x"),
        ('{"input": "a\\udc00"}', "a?"),
        ('{"input": "a\tb"}', "a\tb"),
        ('{"inp', '{"inp'),
        ('{"x": 1}', '{"x": 1}'),
        ("", ""),
    ],
)
def test_arguments_that_are_cut_or_of_another_form(arguments: str, text: str) -> None:
    assert decoded(list(arguments)) == decoded([arguments]) == text
