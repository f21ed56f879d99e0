"""Form of a pair of texts as token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairForm:
    """Special tokens before, between and after the two texts of a pair.

    With `typed`, the tokens after `between` have type 1.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    typed: bool = False

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)
