"""Interface of drafters, which propose the next tokens of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.engine.sequence import Sequence


@dataclass(frozen=True)
class Draft:
    """Proposed next tokens of one sequence.

    Attributes:
        kind: drafts of one kind are about equally often right: the drafter's name, and how sure it is.
    """

    kind: str
    tokens: tuple[int, ...]


class Drafter(Protocol):
    """Source of drafts. What it proposes changes how fast an answer comes, never the answer.

    Attributes:
        name: names the drafter in kinds of drafts.
    """

    @property
    def name(self) -> str: ...

    def propose(self, sequence: Sequence, most: int) -> Draft | None:
        """Return up to `most` tokens that may follow the sequence's last one; None without an idea."""

    def remember(self, sequence: Sequence) -> None:
        """Learn from an answer that is complete."""
