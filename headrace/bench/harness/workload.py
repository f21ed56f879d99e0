"""The work that benchmarks are made of: requests with seeded lengths and readable prompts."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

TEXT = """
water river mill wheel channel stone valley bridge winter morning letter garden market window story night engine
signal number reason answer question teacher village island harbor winter forest mountain silver paper the a of and
to in that it was for on with as by at from but not they were which had has been will would there
"""
WORDS = TEXT.split()


@dataclass(frozen=True)
class WorkItem:
    """One request: its prompt, about `prompt_tokens` long, and exactly how many tokens to generate."""

    prompt: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Lengths:
    """A distribution of token counts: uniform over [low, high], or exponential with `mean`, kept in [low, high]."""

    low: int
    high: int
    mean: float | None = None

    def draw(self, chance: random.Random) -> int:
        if self.mean is None:
            return chance.randint(self.low, self.high)
        return min(self.high, max(self.low, math.ceil(chance.expovariate(1 / self.mean))))

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """`64`, `32-128`, or `exp:48:160` (mean and most). Raises ValueError."""
        kind, _, rest = text.partition(":")
        if kind == "exp":
            mean, _, high = rest.partition(":")
            return cls(1, int(high), float(mean))
        low, _, high = text.partition("-")
        return cls(int(low), int(high or low))


PROMPTS = Lengths(32, 128)
OUTPUTS = Lengths(1, 160, 48)


def make_mix(
    seed: int, count: int = 48, *, prompts: Lengths = PROMPTS, outputs: Lengths = OUTPUTS
) -> list[WorkItem]:
    """`count` requests; a word is about one token of a usual vocabulary."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    items = []
    for _ in range(count):
        length = prompts.draw(chance)
        items.append(WorkItem(" ".join(chance.choices(WORDS, k=length)), length, outputs.draw(chance)))
    return items


CONCURRENCY = 32  # requests at a time, where an engine and a whole path are compared
ALONE = 4  # requests of the mix that are sent one by one, where one at a time is measured
ALONE_FIRST_TOKEN = 24  # requests that are sent one by one, for the time to the first token


def peer_mix(seed: int, concurrency: int) -> list[WorkItem]:
    """The work of a comparison of engines: the mix, or the first of it where there is one request at a time."""
    return make_mix(seed)[: ALONE if concurrency == 1 else None]


def alone_mix(seed: int) -> list[WorkItem]:
    """Requests for the time to the first token: the usual prompts, two tokens of answer."""
    return [WorkItem(item.prompt, item.prompt_tokens, 2) for item in make_mix(seed + 1, ALONE_FIRST_TOKEN)]


def warmup_mix(seed: int) -> list[WorkItem]:
    return make_mix(seed + 2, 2)
