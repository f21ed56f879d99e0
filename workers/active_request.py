"""The requests that a worker holds now: their lease, what the log has of them, and what is to be written next."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import msgspec

from shared.protocol import Embed, ErrorInfo, RequestState, Terminal, Token, TokenEvent, Usage
from shared.queue.interface import Delivery
from shared.token_log.interface import Append, Lease
from workers.engine.interface import EngineOutput, EngineRequest


@dataclass
class ActiveRequest:
    """One held request. `next_seq` is the seq of the next token that the engine gives it."""

    delivery: Delivery
    lease: Lease
    prompt: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    alarm: asyncio.TimerHandle | None = None
    born: float = field(default_factory=time.monotonic)
    next_seq: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_seq = self.lease.next_seq
        self.prompt = self.lease.prompt

    @property
    def id(self) -> str:
        return self.delivery.request.id

    @property
    def run(self) -> str:
        """The engine's name for this lease's run, so that no output of an earlier one is taken for it."""
        return f"{self.id}:{self.lease.epoch}"

    @property
    def history(self) -> list[Token]:
        return [token for event in self.lease.history for token in event.tokens]

    def time_left(self, deadline: float) -> float:
        """Seconds until `deadline`, which is by the server's clock: ours only tells how long the lease is old."""
        return max(0.0, deadline - self.lease.acquired_at - (time.monotonic() - self.born))

    def resume(self, most_tokens: int, prefix_salt: bytes) -> EngineRequest | None:
        """The request as the engine takes it: after its logged tokens. None when they complete it.

        A request without max_tokens may fill `most_tokens`, over all its choices.
        """
        request = self.delivery.request
        params = request.params
        if params.max_tokens is None:
            params = msgspec.structs.replace(params, max_tokens=max(1, most_tokens // params.n))
        emitted: list[list[int]] = [[] for _ in range(params.n)]
        ended = 0
        for token in self.history:
            emitted[token.choice].append(token.id)
            ended += token.finish_reason is not None
        if ended == params.n:
            return None
        if self.history:  # it was told with the first token
            params = msgspec.structs.replace(params, echo=False)
        return EngineRequest(
            self.run,
            self.prompt,
            params,
            resumed=tuple(tuple(ids) for ids in emitted),
            priority=request.priority,
            tenant=request.tenant,
            prefix_salt=prefix_salt,
            lengths=self.lengths,
            dimensions=request.work.dimensions if isinstance(request.work, Embed) else None,
        )

    def append(self, outputs: list[EngineOutput]) -> Append:
        """One append for all of `outputs`, in order, and the terminal event if they end the request."""
        tokens = tuple(token for output in outputs for token in output.tokens)
        last = outputs[-1]
        prompt = next((output.prompt for output in outputs if output.prompt), ())
        event = TokenEvent(self.next_seq, tokens, None, prompt)
        self.next_seq += len(tokens)
        if last.finished:
            event = msgspec.structs.replace(event, terminal=self._end(last))
        return Append(self.lease, event, len(self.prompt), () if last.finished else self._record(event))

    def _record(self, event: TokenEvent) -> tuple[int, ...]:
        """The prompt's ids, with the first tokens of a chat: rendered again, its template may give others.

        A template may contain the time, and the next worker may have another version of it.
        """
        first = event.seq == 0 and event.tokens
        return self.prompt if first and self.delivery.request.messages is not None else ()

    def _end(self, last: EngineOutput) -> Terminal:
        error = last.error
        state = RequestState.FAILED if error else RequestState.COMPLETED
        usage = Usage(len(self.prompt), self.next_seq)
        waited = self.lease.started_at - self.delivery.request.created_at
        return Terminal(state, usage, ErrorInfo.of(error) if error else None, waited, last.result)


def by_run(outputs: list[EngineOutput]) -> dict[str, list[EngineOutput]]:
    """Outputs grouped by the run that they belong to, each in order."""
    grouped: dict[str, list[EngineOutput]] = {}
    for output in outputs:
        grouped.setdefault(output.job_id, []).append(output)
    return grouped
