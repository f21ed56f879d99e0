"""Workloads of the benchmarks: requests with seeded lengths and readable prompts."""

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
    """One request: a prompt of about `prompt_tokens` tokens, and the exact number of tokens to generate."""

    prompt: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Lengths:
    """Distribution of token counts: uniform over [low, high], or exponential with `mean` and clipped to it."""

    low: int
    high: int
    mean: float | None = None

    def draw(self, chance: random.Random) -> int:
        if self.mean is None:
            return chance.randint(self.low, self.high)
        return min(self.high, max(self.low, math.ceil(chance.expovariate(1 / self.mean))))

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Parse `64`, `32-128` or `exp:48:160` (mean and maximum). Raises ValueError."""
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
    """Return `count` requests. A word is about one token of a common vocabulary."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    items = []
    for _ in range(count):
        length = prompts.draw(chance)
        items.append(WorkItem(" ".join(chance.choices(WORDS, k=length)), length, outputs.draw(chance)))
    return items


CONCURRENCY = 32  # requests at a time, when the engine alone is compared with the full stack
SEQUENTIAL_REQUESTS = 4  # requests of the mix, when one request at a time is measured
TTFT_REQUESTS = 24  # requests sent one by one, for the time to the first token


def peer_mix(seed: int, concurrency: int) -> list[WorkItem]:
    """Return the workload for comparing engines: the mix, or its first requests if they run one at a time."""
    return make_mix(seed)[: SEQUENTIAL_REQUESTS if concurrency == 1 else None]


def ttft_mix(seed: int) -> list[WorkItem]:
    """Return requests for the time to the first token: prompts as in the mix, answers of two tokens."""
    return [WorkItem(item.prompt, item.prompt_tokens, 2) for item in make_mix(seed + 1, TTFT_REQUESTS)]


def warmup_mix(seed: int) -> list[WorkItem]:
    return make_mix(seed + 2, 2)
