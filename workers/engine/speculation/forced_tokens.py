"""Drafter of the tokens that a grammar forces.

They are drafts because the text is forced, not its tokens: a model may spell it with others.
"""

from __future__ import annotations

from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft


class ForcedTokenDrafter:
    """Drafter of the text that the answer's grammar forces next; see `Drafter`."""

    name = "grammar"

    def propose(self, sequence: Sequence, most: int) -> Draft | None:
        if sequence.matcher is None:
            return None
        tokens = sequence.matcher.forced_tokens()
        return Draft(self.name, tuple(tokens[:most])) if tokens else None

    def remember(self, sequence: Sequence) -> None:
        """Do nothing: a grammar is complete from its beginning."""
