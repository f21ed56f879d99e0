"""An engine without weights: tokens by a rule, so that every gap or repeat in an answer shows.

Token p of choice c of a prompt is known beforehand (`expected`). For tests, and to measure delivery by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.protocol import FinishReason, Message, Token
from workers.engine.interface import EngineOutput, EngineRequest, EngineStats

VOCABULARY = 50_000


def expected(prompt: Sequence[int], choice: int, position: int) -> int:
    """The token that this engine gives at `position` (0 is the first generated) of `choice`."""
    return (sum(prompt) * 31 + choice * 7_919 + position * 104_729) % VOCABULARY


def text_of(token: int) -> str:
    return f" {token}"


class ScriptedTokenizer:
    """One token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) % VOCABULARY for character in text]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(f"{message.role}:{message.content}\n" for message in messages))


@dataclass
class _Run:
    request: EngineRequest
    emitted: list[int]  # tokens so far, per choice


class ScriptedEngine:
    """A Generator.

    Args:
        max_model_len: most tokens of prompt and answer.
        max_num_seqs: most sequences that advance in one step.
        step_time: seconds that a step takes.
    """

    def __init__(self, *, max_model_len: int = 8192, max_num_seqs: int = 256, step_time: float = 0.0) -> None:
        self.tokenizer = ScriptedTokenizer()
        self.max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
        self._step_time = step_time
        self._runs: dict[str, _Run] = {}

    def add(self, request: EngineRequest) -> None:
        wanted = len(request.prompt) + (request.params.max_tokens or 1)
        if wanted > self.max_model_len:
            raise ContextLengthExceeded(
                f"the model's context is {self.max_model_len} tokens; {len(request.prompt)} of the prompt and "
                f"{request.params.max_tokens} of max_tokens were asked for",
                param="messages",
            )
        if request.id in self._runs:
            raise InvalidRequest("that id is running already")
        emitted = [len(tokens) for tokens in request.resumed] or [0] * request.params.n
        self._runs[request.id] = _Run(request, emitted)

    def abort(self, request_id: str) -> bool:
        return self._runs.pop(request_id, None) is not None

    def step(self) -> list[EngineOutput]:
        if self._step_time:
            time.sleep(self._step_time)
        outputs = [self._advance(run) for run in list(self._runs.values())[: self._max_num_seqs]]
        for output in outputs:
            if output.finished:
                del self._runs[output.request_id]
        return outputs

    def _advance(self, run: _Run) -> EngineOutput:
        limit = run.request.params.max_tokens or self.max_model_len - len(run.request.prompt)
        tokens = []
        for choice, position in enumerate(run.emitted):
            if position < limit:
                token = expected(run.request.prompt, choice, position)
                run.emitted[choice] += 1
                end = FinishReason.LENGTH if position + 1 == limit else None
                tokens.append(Token(choice, token, text_of(token), end))
        finished = all(position >= limit for position in run.emitted)
        return EngineOutput(run.request.id, tuple(tokens), finished)

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Its steps are never given up."""

    def has_work(self) -> bool:
        return bool(self._runs)

    def stats(self) -> EngineStats:
        running = sum(run.request.params.n for run in self._runs.values())
        return EngineStats(running=running, blocks_used=running, blocks_total=self._max_num_seqs)
