"""A sequence of requests, between which a model keeps state."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.predictors.interface import Array

SequenceKey = tuple[str, int | str]  # tenant, and id within it


@dataclass(eq=False)
class Sequence:
    """One sequence.

    Attributes:
        state: arrays for the state inputs of its next request, by name; empty before the first.
    """

    key: SequenceKey
    state: dict[str, Array] = field(default_factory=dict)
