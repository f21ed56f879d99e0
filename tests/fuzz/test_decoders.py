"""A short run of the decoders' part of scripts/fuzz, the same each time."""

from __future__ import annotations

import pytest

from tests.fuzz.decoders import DECODERS, fuzz


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_request_is_decoded_or_refused(decoder: str) -> None:
    outcomes = fuzz(decoder, cases=400, seed=7)
    assert min(outcomes.values()) > 40, outcomes  # both happen
