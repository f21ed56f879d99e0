"""Interface of what runs choices: vLLM, or a scripted stand-in of the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.engine.stats import EngineStats

Logprobs = Mapping[int, tuple[float, int]]  # log-probability and rank from 1 of tokens, by id


@dataclass(frozen=True)
class StepResult:
    """Additions of one step to one choice.

    Attributes:
        id: of the choice.
        logprobs: one entry for each of `token_ids`; None where they were not asked for.
        finished: the executor has ended the choice and forgotten it.
        cached_tokens: tokens of its prompt that were found in the prefix cache.
        prompt_logprobs: with the first tokens of a choice that asks for them: one entry for each token of the
            prompt, None for the first.
    """

    id: str
    token_ids: Sequence[int]
    logprobs: Sequence[Logprobs | None]
    finished: bool
    cached_tokens: int = 0
    prompt_logprobs: Sequence[Logprobs | None] = ()


class Executor(Protocol):
    """Continuous batching of choices that are given as token ids. One thread makes all calls."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def device_type(self) -> str:
        """Type of the device of the logits, as torch names it."""

    def add(
        self, choice_id: str, prompt: list[int], arguments: Mapping[str, Any], *, salt: bytes, priority: int
    ) -> None:
        """Start a choice. Raises ValueError for arguments that are not supported.

        Args:
            arguments: of vLLM's SamplingParams.
            salt: separates the prefix cache.
            priority: the lowest runs first.
        """

    def abort(self, choice_ids: list[str]) -> None: ...

    def step(self) -> list[StepResult]: ...

    def stats(self) -> EngineStats:
        """Return the numbers of choices and KV blocks."""
