"""Drafters and costs for tests of speculation, which do not depend on the machine's speed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from workers.engine.engine import Engine
from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft, Drafter
from workers.engine.speculation.speculator import Speculator

VOCABULARY = 256  # of the tiny checkpoints


class LinearCosts:
    """Costs of a step: 1 for its first row, and `row` for each more."""

    def __init__(self, row: float = 0.0) -> None:
        self._row = row
        self.recorded: list[int] = []

    def record(self, rows: int, seconds: float) -> None:
        self.recorded.append(rows)

    def seconds(self, rows: int) -> float | None:
        return 1 + self._row * (rows - 1)


class Oracle:
    """Drafter that knows the answers: it proposes the tokens that will come, but a wrong one now and then.

    Args:
        answers: token ids by job and choice.
        wrong: probability of a wrong token.
        shortest: least length of a draft, where the answer is long enough.
    """

    name = "oracle"

    def __init__(
        self, answers: Mapping[tuple[str, int], list[int]], wrong: float = 0.0, *, shortest: int = 1
    ) -> None:
        self._answers = answers
        self._wrong = wrong
        self._shortest = shortest
        self._random = random.Random(1)
        self.proposed = 0

    def propose(self, sequence: Sequence, most: int) -> Draft | None:
        answer = self._answers.get((sequence.job_id, sequence.choice), [])
        following = answer[sequence.num_output_tokens :][: self._random.randint(min(self._shortest, most), most)]
        drafted = tuple(self._spoil(token) for token in following)
        self.proposed += len(drafted)
        return Draft(self.name, drafted) if drafted else None

    def remember(self, sequence: Sequence) -> None:
        """Do nothing: it knows everything."""

    def _spoil(self, token: int) -> int:
        return self._random.randrange(VOCABULARY) if self._random.random() < self._wrong else token


def speculate(
    engine: Engine,
    *drafters: Drafter,
    most: int = 6,
    costs: LinearCosts | None = None,
    model: Drafter | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Speculator:
    """Have an engine use these drafters alone, with costs that are known."""
    engine.speculator = Speculator(drafters, costs or LinearCosts(), most, clock, model=model)
    return engine.speculator
