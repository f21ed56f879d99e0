"""Numbers in texts are ASCII digits."""

from __future__ import annotations

import pytest

from shared.numbers import decimal, whole

FOREIGN = ["", " 5", "5 ", "5\n", "+5", "-5", "1_0", "\u0665", "\u00b2", "1e3", "nan", "inf", "0x5"]


@pytest.mark.parametrize("text", [*FOREIGN, "9" * 16, "9" * 5000, ".5", "5.", "1.2.3"])
def test_other_spellings_are_no_numbers(text: str) -> None:
    assert (whole(text), decimal(text)) == (None, None)


def test_numbers() -> None:
    assert (whole("007"), whole("5.0"), decimal("2.50"), decimal("9" * 15)) == (7, None, 2.5, 1e15 - 1)
