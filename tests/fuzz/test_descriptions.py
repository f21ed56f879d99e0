"""A short run of the mutated model descriptions of scripts/fuzz, the same each time."""

from __future__ import annotations

from tests.fuzz.descriptions import fuzz_descriptions


def test_descriptions_raise_nothing_but_the_typed_error() -> None:
    counts = fuzz_descriptions(cases=300, seed=7)
    for form in ("pbtxt", "toml", "json"):
        assert counts[form, "refused"] + counts[form, "accepted"] == 300
        assert counts[form, "refused"] > 0 < counts[form, "accepted"]
