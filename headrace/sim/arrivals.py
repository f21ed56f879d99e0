"""Arrivals of requests: a synthetic day, a stationary load, or a file."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError

DAY_S = 86_400.0
PEAK_AT_S = 14 * 3600.0
COLUMNS = ("at_s", "prompt_tokens", "answer_tokens")
MAX_ARRIVALS = 20_000_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that arrives `at` so many seconds after the start."""

    at: float
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Lengths:
    """Random lengths of requests, those of the benchmarks' standard mix.

    Prompts are uniform, answers exponential and cut off.
    """

    prompt: tuple[int, int] = (32, 128)
    answer_mean: float = 48.0
    answer_max: int = 160

    def draw(self, chance: random.Random, at: float) -> Arrival:
        answer = min(self.answer_max, 1 + int(chance.expovariate(1 / self.answer_mean)))
        return Arrival(at, chance.randint(*self.prompt), answer)


@dataclass(frozen=True)
class Day:
    """A day whose load swings like a sine around its mean, with bursts at random times.

    Attributes:
        requests: expected number of requests without the bursts.
        swing: difference of the peak, at 14:00, to the mean, as a share of the mean.
        bursts: number of bursts.
        burst_factor: how many times the usual load arrives during a burst.
        burst_s: duration of a burst in seconds.
    """

    requests: float = 300_000.0
    swing: float = 0.8
    bursts: int = 6
    burst_factor: float = 3.0
    burst_s: float = 600.0

    def arrivals(self, seed: int, lengths: Lengths | None = None) -> Iterator[Arrival]:
        """Yield a Poisson process of this rate, the same for the same seed."""
        chance = random.Random(seed)  # noqa: S311  a simulation must be repeatable
        lengths = lengths or Lengths()
        starts = sorted(chance.uniform(0, DAY_S - self.burst_s) for _ in range(self.bursts))
        mean = self.requests / DAY_S
        most = mean * (1 + self.swing) * (self.burst_factor if self.bursts else 1.0)
        at = 0.0
        while most > 0 and (at := at + chance.expovariate(most)) < DAY_S:
            rate = mean * (1 + self.swing * math.cos(2 * math.pi * (at - PEAK_AT_S) / DAY_S))
            if any(start <= at < start + self.burst_s for start in starts):
                rate *= self.burst_factor
            if chance.random() * most < rate:
                yield lengths.draw(chance, at)


def stationary(rate: float, seconds: float, seed: int, lengths: Lengths | None = None) -> Iterator[Arrival]:
    """Yield a Poisson process of a constant rate per second."""
    chance = random.Random(seed)  # noqa: S311  a simulation must be repeatable
    lengths = lengths or Lengths()
    at = 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        yield lengths.draw(chance, at)


def read_csv(path: Path) -> list[Arrival]:
    """Read arrivals in the order of their times from a CSV file with the columns COLUMNS. Raises ConfigError."""
    found: list[Arrival] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                found.append(_parse(row, f"--arrivals {path}, line {number}"))
                if len(found) > MAX_ARRIVALS:
                    raise ConfigError(f"--arrivals {path} must have at most {MAX_ARRIVALS:,} lines")
    except OSError as error:
        raise ConfigError(f"--arrivals {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--arrivals {path} is not a CSV file in UTF-8: {error}") from error
    if not found:
        raise ConfigError(f"--arrivals {path} must have at least one arrival below its header")
    return sorted(found, key=lambda arrival: arrival.at)


def _parse(row: dict[str, str], place: str) -> Arrival:
    try:
        at, prompt, answer = float(row["at_s"]), int(row["prompt_tokens"]), int(row["answer_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: the columns {', '.join(COLUMNS)} must be numbers, got {row}") from error
    if not 0 <= at < math.inf or prompt < 1 or answer < 1:
        raise ConfigError(f"{place}: at_s must be 0 or more, the tokens at least 1, got {row}")
    return Arrival(at, prompt, answer)
