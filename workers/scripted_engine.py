"""Engine without weights: its tokens follow a rule, so that every gap or repetition in an answer is visible.

Token p of choice c of a prompt is known in advance (`expected`). It serves tests and benchmarks of delivery.
A prompt may contain directives, which count as part of the prompt for the rule:

    [pace 20]   at most one token of each choice every 20 ms
    [die 5]     the process exits at once, like a killed one, instead of producing token 5
    [hang 5]    the engine waits forever instead of producing token 5, unless the run begins there; [hang 0] always
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shared.errors import InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import DEFAULT_PROMPT_OPTIONS, FinishReason, Message, PromptOptions, Token, Tools
from workers.engine.echo import Echo
from workers.engine.interface import EngineOutput, EngineRequest, too_long
from workers.engine.pair_form import PairForm
from workers.engine.request_check import check_prompt_length
from workers.engine.stats import EngineStats

VOCAB_SIZE = 50_000
DEFAULT_CONTEXT_TOKENS = 8192  # without the setting max_model_len
MAX_SLEEP_S = 0.01  # of a step without a due token, so that an abort is handled soon
DIRECTIVE = re.compile(r"\[(pace|die|hang) (\d{1,9})\]")


def expected(prompt: Sequence[int], choice: int, position: int) -> int:
    """Return the token at `position` of `choice`; 0 is the first generated position."""
    return _token(_first_value(prompt), choice, position)


def _first_value(prompt: Sequence[int]) -> int:
    """Return the value that a prompt's answer starts from; it depends on the order of the tokens."""
    return zlib.crc32(array("q", prompt).tobytes())


def _token(first_value: int, choice: int, position: int) -> int:
    return (first_value + choice * 7_919 + position * 104_729) % VOCAB_SIZE


def text_of(token: int) -> str:
    return f" {token}"


class ScriptedTokenizer:
    """Tokenizer with one token per character."""

    vocab_size = VOCAB_SIZE

    def encode(
        self, text: str, *, special: bool = True, most_tokens: int | None = None, param: str = "prompt"
    ) -> list[int]:
        if most_tokens is not None and len(text) > most_tokens:
            raise too_long(len(text), "characters", most_tokens, param)
        return [ord(character) % VOCAB_SIZE for character in text]

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
        *,
        most_tokens: int | None = None,
    ) -> list[int]:
        text = "".join(f"{message.role}:{message.content}\n" for message in messages)
        return self.encode(text, most_tokens=most_tokens, param="messages")

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return ()

    def text_form(self) -> tuple[Sequence[int], Sequence[int]]:
        return (), ()

    def pair_form(self) -> PairForm:
        return PairForm()

    def encode_infilling(
        self, prefix: str, suffix: str, *, special: bool = True, most_tokens: int | None = None
    ) -> list[int]:
        return self.encode(f"{prefix}[gap]{suffix}", most_tokens=most_tokens)

    def decode_all(self, ids: Sequence[int]) -> str:
        return "".join(map(self.entry, ids))

    def entry(self, token_id: int) -> str:
        return chr(token_id)

    def token_texts(self, ids: list[int]) -> list[str]:
        return list(map(self.entry, ids))

    def describe(self) -> dict[str, Any]:
        return {"tokenizer_class": type(self).__name__, "eos_token": None}


@dataclass
class _ScriptedRun:
    """One running request.

    Attributes:
        emitted: tokens so far, per choice.
        due: time of the next tokens, by time.monotonic.
        limit: tokens of each choice.
        interval_s: between two tokens of a choice.
        faults: calls that end the process or hang the engine, each with the tokens of a choice before it.
        echo: the prompt, to be sent with the next output; empty if it was sent, or is not asked for.
    """

    request: EngineRequest
    emitted: list[int]
    limit: int
    first_value: int = field(init=False)
    interval_s: float = 0.0
    due: float = 0.0
    faults: list[tuple[int, Callable[[], object]]] = field(default_factory=list)
    echo: tuple[Token, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.first_value = _first_value(self.request.prompt)
        echo = Echo.from_params(list(self.request.prompt), self.request.params)
        self.echo = () if echo is None else echo.tokens(lambda ids: list(map(chr, ids)), 0)
        text = "".join(chr(token) for token in self.request.prompt if token < VOCAB_SIZE)
        for name, number in DIRECTIVE.findall(text):
            if name == "pace":
                self.interval_s = int(number) / 1000
            elif name == "die":
                self.faults.append((int(number), partial(os._exit, 1)))
            elif int(number) == 0 or max(self.emitted) < int(number):
                self.faults.append((int(number), threading.Event().wait))


class ScriptedEngine:
    """Generator without weights. It cannot constrain answers, so schemas and tools are refused.

    Of the sampling parameters, it follows `max_tokens`, `n` and `echo`.

    Args:
        max_model_len: maximum number of tokens of prompt and answer.
        max_num_seqs: maximum number of requests that advance in one step.
    """

    def __init__(self, *, max_model_len: int = DEFAULT_CONTEXT_TOKENS, max_num_seqs: int = 256) -> None:
        self.tokenizer = ScriptedTokenizer()
        self.constraints = None
        self.fingerprint = "fp_scripted"
        self.computation: Mapping[str, str] = {}
        self.task: Task = "generate"
        self.max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
        self._runs: dict[str, _ScriptedRun] = {}

    def add(self, request: EngineRequest) -> None:
        check_prompt_length(request, self.max_model_len)
        if request.id in self._runs:
            raise InvalidRequest(f"run {request.id} is running already")
        emitted = [len(tokens) for tokens in request.resumed] or [0] * request.params.n
        self._runs[request.id] = _ScriptedRun(request, emitted, request.max_output_tokens(self.max_model_len))

    def abort(self, job_id: str) -> bool:
        return self._runs.pop(job_id, None) is not None

    def step(self) -> list[EngineOutput]:
        now = time.monotonic()
        due = [run for run in self._runs.values() if run.due <= now]
        if not due:
            soonest = min(run.due for run in self._runs.values())
            time.sleep(min(soonest - now, MAX_SLEEP_S))
            return []
        outputs = [self._advance(run, now) for run in due[: self._max_num_seqs]]
        for output in outputs:
            if output.finished:
                del self._runs[output.job_id]
        return outputs

    def _advance(self, run: _ScriptedRun, now: float) -> EngineOutput:
        for count, fail in run.faults:
            if max(run.emitted) >= count:
                fail()
        run.due = now + run.interval_s
        limit = run.limit
        tokens = []
        for choice, position in enumerate(run.emitted):
            if position < limit:
                token = _token(run.first_value, choice, position)
                run.emitted[choice] += 1
                end = FinishReason.LENGTH if position + 1 == limit else None
                tokens.append(Token(choice, token, text_of(token), end))
        finished = all(position >= limit for position in run.emitted)
        prompt, run.echo = run.echo, ()
        return EngineOutput(run.request.id, tuple(tokens), finished, prompt=prompt)

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Ignore the signal: steps take no time."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Do nothing: its work changes only with commands and steps."""

    def has_work(self) -> bool:
        return bool(self._runs)

    def stats(self) -> EngineStats:
        running = sum(run.request.params.n for run in self._runs.values())
        return EngineStats(running=running, blocks_used=running, blocks_total=self._max_num_seqs)
