"""One choice of a request, as vLLM runs it: a request of its own in vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from shared.errors import HeadraceError
from workers.engine.sequence import Sequence


@dataclass(eq=False, repr=False)
class Choice:
    """A sequence in vLLM. vLLM carries it to the processor of its logits, by reference.

    Attributes:
        id: of the request in vLLM.
        failure: the reason why the last step could not choose a token for it.
    """

    id: str
    sequence: Sequence
    failure: HeadraceError | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the same object: vLLM copies the parameters of a request."""
        return self

    def __repr__(self) -> str:
        """Leave out the tokens: vLLM logs the parameters of requests when a step fails."""
        return f"Choice({self.id})"
