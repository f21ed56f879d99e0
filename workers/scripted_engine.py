"""An engine without weights: tokens by a rule, so that every gap or repeat in an answer shows.

Token p of choice c of a prompt is known beforehand (`expected`). For tests, and to measure delivery by itself.
A prompt may hold directives, which are part of it for the rule as well:

    [pace 20]   a token of each choice every 20 ms, and no sooner
    [die 5]     the process ends at once, as by a kill, instead of giving token 5
"""

from __future__ import annotations

import os
import re
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import FinishReason, Message, Token, Tools
from workers.engine.interface import EngineOutput, EngineRequest, EngineStats, too_long

VOCABULARY = 50_000
CONTEXT = 8192  # tokens, unless a setting says otherwise
NAP = 0.01  # seconds that a step waits at most while no token is due, so that an abort is not kept waiting
DIRECTIVE = re.compile(r"\[(pace|die) (\d{1,9})\]")


def expected(prompt: Sequence[int], choice: int, position: int) -> int:
    """The token that this engine gives at `position` (0 is the first generated) of `choice`."""
    return _token(_start(prompt), choice, position)


def _start(prompt: Sequence[int]) -> int:
    """Where a prompt's answer begins; the prompt's order counts."""
    return zlib.crc32(array("q", prompt).tobytes())


def _token(start: int, choice: int, position: int) -> int:
    return (start + choice * 7_919 + position * 104_729) % VOCABULARY


def text_of(token: int) -> str:
    return f" {token}"


class ScriptedTokenizer:
    """One token per character."""

    vocab_size = VOCABULARY

    def encode(
        self, text: str, *, special: bool = True, most_tokens: int | None = None, param: str = "prompt"
    ) -> list[int]:
        if most_tokens is not None and len(text) > most_tokens:
            raise too_long(len(text), "characters", most_tokens, param)
        return [ord(character) % VOCABULARY for character in text]

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        generation_prompt: bool = True,
        special: bool = False,
        most_tokens: int | None = None,
    ) -> list[int]:
        text = "".join(f"{message.role}:{message.content}\n" for message in messages)
        return self.encode(text, most_tokens=most_tokens, param="messages")

    def decode_all(self, ids: Sequence[int]) -> str:
        return "".join(map(self.entry, ids))

    def entry(self, token_id: int) -> str:
        return chr(token_id)


@dataclass
class _Run:
    """One request; `emitted` tokens so far per choice, the next ones `due` by time.monotonic.

    `pace` is in seconds; at `death` tokens of a choice the process ends.
    """

    request: EngineRequest
    emitted: list[int]
    start: int = field(init=False)
    pace: float = 0.0
    death: int | None = None
    due: float = 0.0
    echoed: bool = False

    def __post_init__(self) -> None:
        self.start = _start(self.request.prompt)
        text = "".join(chr(token) for token in self.request.prompt if token < VOCABULARY)
        for name, number in DIRECTIVE.findall(text):
            if name == "pace":
                self.pace = int(number) / 1000
            else:
                self.death = int(number)

    @property
    def fatal(self) -> bool:
        return self.death is not None and max(self.emitted) >= self.death

    def echo(self) -> tuple[Token, ...]:
        """The prompt, where it is asked for, with the first token of this run."""
        if self.echoed or not self.request.params.echo:
            return ()
        self.echoed = True
        return tuple(Token(0, token, chr(token)) for token in self.request.prompt)


class ScriptedEngine:
    """A Generator; it cannot constrain what it says, so that schemas and tools are refused.

    Args:
        max_model_len: most tokens of prompt and answer.
        max_num_seqs: most requests that advance in one step.
    """

    def __init__(self, *, max_model_len: int = CONTEXT, max_num_seqs: int = 256) -> None:
        self.tokenizer = ScriptedTokenizer()
        self.constraints = None
        self.fingerprint = "fp_scripted"
        self.task: Task = "generate"
        self.max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
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

    def abort(self, job_id: str) -> bool:
        return self._runs.pop(job_id, None) is not None

    def step(self) -> list[EngineOutput]:
        now = time.monotonic()
        due = [run for run in self._runs.values() if run.due <= now]
        if not due:
            soonest = min(run.due for run in self._runs.values())
            time.sleep(min(soonest - now, NAP))
            return []
        outputs = [self._advance(run, now) for run in due[: self._max_num_seqs]]
        for output in outputs:
            if output.finished:
                del self._runs[output.job_id]
        return outputs

    def _advance(self, run: _Run, now: float) -> EngineOutput:
        if run.fatal:
            os._exit(1)
        run.due = now + run.pace
        limit = run.request.params.max_tokens or self.max_model_len - len(run.request.prompt)
        tokens = []
        for choice, position in enumerate(run.emitted):
            if position < limit:
                token = _token(run.start, choice, position)
                run.emitted[choice] += 1
                end = FinishReason.LENGTH if position + 1 == limit else None
                tokens.append(Token(choice, token, text_of(token), end))
        finished = all(position >= limit for position in run.emitted)
        return EngineOutput(run.request.id, tuple(tokens), finished, prompt=run.echo())

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Its steps are never given up."""

    def has_work(self) -> bool:
        return bool(self._runs)

    def stats(self) -> EngineStats:
        running = sum(run.request.params.n for run in self._runs.values())
        return EngineStats(running=running, blocks_used=running, blocks_total=self._max_num_seqs)
