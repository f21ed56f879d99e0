"""Measured times of an engine's steps."""

from __future__ import annotations

import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

BENCH_STREAMS = (1, 32)  # the part `steps` of `headrace bench batching` measures steps of these many answers


@dataclass(frozen=True)
class StepTimes:
    """Seconds that an engine's steps take.

    Attributes:
        decode_s: seconds of a step, by the number of answers that it advances.
        prompt_token_s: seconds that each prompt token adds to the step that computes it.
    """

    decode_s: Mapping[int, float]
    prompt_token_s: float

    def seconds(self, answers: int) -> float:
        """Return the seconds of a step of so many answers: interpolated, and proportional beyond the last one."""
        sizes = sorted(self.decode_s)
        at = bisect_left(sizes, answers)
        if at == len(sizes):
            return self.decode_s[sizes[-1]] * answers / sizes[-1]
        if at == 0:
            return self.decode_s[sizes[0]]
        below, above = sizes[at - 1], sizes[at]
        share = (answers - below) / (above - below)
        return self.decode_s[below] * (1 - share) + self.decode_s[above] * share

    @classmethod
    def read(cls, path: Path) -> StepTimes:
        """Read a file: `{"decode_s": {"1": 0.02, …}, "prompt_token_s": 0.001}`, or the output of `headrace bench
        batching --parts steps --json`, which lacks the time of a prompt token; that of SMOLLM2 is used then.

        Raises ConfigError.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--step-times {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"--step-times {path} is not JSON: {error}") from error
        try:
            return cls._parse(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = '{"decode_s": {"1": SECONDS, …}, "prompt_token_s": SECONDS}'
            raise ConfigError(
                f"--step-times {path} must hold {expected}, or the output of "
                f"`headrace bench batching --parts steps --json`"
            ) from error

    @classmethod
    def _parse(cls, found: Any) -> StepTimes:
        if "steps" in found:
            pair = found["steps"]
            medians = (statistics.median(pair["without"]), statistics.median(pair["with_it"]))
            decode, prompt = dict(zip(BENCH_STREAMS, medians, strict=True)), SMOLLM2.prompt_token_s
        else:
            decode = {int(size): float(seconds) for size, seconds in found["decode_s"].items()}
            prompt = float(found["prompt_token_s"])
        if not decode or min(decode) < 1 or not all(0 < value < math.inf for value in decode.values()):
            raise ValueError
        if not 0 <= prompt < math.inf:
            raise ValueError
        return cls(decode, prompt)


# SmolLM2-135M in float32 on two AVX2 cores, quiet: medians of 30 steps after prompts of 64 tokens; for 1 and 32
# answers those of `headrace bench batching --parts steps`. A prompt of 64 or 128 tokens alone took 94 or 183 ms.
SMOLLM2 = StepTimes({1: 0.0182, 2: 0.0204, 4: 0.0276, 8: 0.0369, 16: 0.0476, 32: 0.0615}, prompt_token_s=0.001_25)
