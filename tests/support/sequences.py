"""Hand-made sequences, for tests of the parts of the engine."""

from __future__ import annotations

from typing import Any

from shared.protocol import SamplingParams
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream


def make_sequence(
    params: SamplingParams, prompt: list[int], output: list[int], choice: int = 0, **fields: Any
) -> Sequence:
    """Return a sequence with this prompt and output; its text is always empty. `fields` are others of Sequence."""
    text = TextStream(lambda ids: "")
    return Sequence("r", choice, 0, params, prompt + output, len(prompt), 99, frozenset(), text, **fields)
