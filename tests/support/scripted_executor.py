"""Executor for tests of the runtime "vllm" without vLLM: the token at a position depends on the position alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.engine.stats import EngineStats
from workers.runtimes.vllm.executor import Logprobs, StepResult

LIKELIEST, IMPOSSIBLE = 0, 1  # tokens


@dataclass
class _Running:
    tokens: list[int]
    left: int
    arguments: Mapping[str, Any]
    started: bool = False


class ScriptedExecutor:
    """Executor whose token at position p of prompt and answer together is `script[p % len(script)]`.

    Attributes:
        added: arguments of each choice that was added, by id.
        aborted: ids of aborted choices.
    """

    device_type = "cpu"

    def __init__(self, script: list[int], *, vocab_size: int = 258, max_model_len: int = 64) -> None:
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.added: dict[str, Mapping[str, Any]] = {}
        self.aborted: list[str] = []
        self._script = script
        self._running: dict[str, _Running] = {}

    def add(
        self, choice_id: str, prompt: list[int], arguments: Mapping[str, Any], *, salt: bytes, priority: int
    ) -> None:
        if arguments.get("temperature", 0) > 2:
            raise ValueError("temperature is above 2")
        self.added[choice_id] = {**arguments, "prompt": prompt, "salt": salt, "priority": priority}
        self._running[choice_id] = _Running(prompt, arguments["max_tokens"], arguments)

    def abort(self, choice_ids: list[str]) -> None:
        self.aborted += choice_ids
        for choice_id in choice_ids:
            self._running.pop(choice_id, None)

    def step(self) -> list[StepResult]:
        results = [self._advance(choice_id, each) for choice_id, each in self._running.items()]
        for result in results:
            if result.finished:
                del self._running[result.id]
        return results

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._running))

    def _advance(self, choice_id: str, running: _Running) -> StepResult:
        first, running.started = not running.started, True
        prompt = list(running.tokens) if first and running.arguments["prompt_logprobs"] is not None else []
        token = self._script[len(running.tokens) % len(self._script)]
        running.tokens.append(token)
        running.left -= 1
        finished = not running.left or token in running.arguments["stop_token_ids"]
        scores = [_scores(each) if index else None for index, each in enumerate(prompt)]
        logprobs = None if running.arguments["logprobs"] is None else _scores(token)
        return StepResult(choice_id, [token], [logprobs], finished, 2 if first else 0, scores)


def _scores(token: int) -> Logprobs:
    """Return log-probabilities by which `token` is the second most likely, after LIKELIEST."""
    return {token: (-1.0, 2), LIKELIEST: (-0.5, 1), IMPOSSIBLE: (float("-inf"), 3)}
