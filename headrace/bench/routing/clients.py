"""Clients of the routing benchmark: each sends the turns of a session in order, and reads the answers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from headrace.bench.harness.report import Spread
from headrace.bench.routing.fleet import MODEL, Fleet
from headrace.bench.routing.workload import Session
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.protocol import Message, Request, SamplingParams, new_job_id

SILENCE_S = 60.0  # in an answer, after which the run fails


@dataclass(frozen=True)
class Throughput:
    """Measurements of one run.

    Attributes:
        tokens_per_s: tokens that reached the clients.
        first_token: seconds from the submit to the first token.
        cached: share of the prompts' tokens that the engines found in their prefix caches.
        requests: number of requests that each worker began.
    """

    tokens_per_s: float
    first_token: Spread
    cached: float
    requests: dict[str, int]

    def on_faster(self, times: float) -> Throughput:
        """Return the measurements on engines that are so many times as fast."""
        first_token = Spread(*(value / times for value in dataclasses.astuple(self.first_token)))
        return dataclasses.replace(self, tokens_per_s=self.tokens_per_s * times, first_token=first_token)


@dataclass
class Tally:
    """Tokens and times that the clients have seen since the last `clear`."""

    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)

    def clear(self) -> None:
        self.tokens = 0
        self.first_token_s.clear()


@dataclass(frozen=True)
class Answer:
    job_id: str
    text: str


async def measure_throughput(
    fleet: Fleet,
    sessions: Iterator[Session],
    *,
    clients: int,
    warmup_s: float,
    seconds: float,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Throughput:
    """Run a closed loop of `clients`, and measure `seconds` of it after a warm-up."""
    tally = Tally()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_hold_sessions(fleet.backend, sessions, tally, client / clients))
            for client in range(clients)
        ]
        await sleep(warmup_s)
        tally.clear()
        before, begin = fleet.counts(), time.perf_counter()
        await sleep(seconds)
        rate, counts = tally.tokens / (time.perf_counter() - begin), fleet.counts()
        first_token = Spread.from_values(tally.first_token_s)
        for task in running:
            task.cancel()
    grown = {worker: count.since(before[worker]) for worker, count in counts.items()}
    looked_up = sum(count.prefix_queries for count in grown.values())
    found = sum(count.prefix_hits for count in grown.values())
    requests = {worker: count.requests for worker, count in grown.items()}
    return Throughput(rate, first_token, found / max(1, looked_up), requests)


async def _hold_sessions(backend: Backend, sessions: Iterator[Session], tally: Tally, progress: float) -> None:
    """Hold one session after the other, the first from `progress` on, as if it had begun before the run."""
    for session in sessions:
        await _converse(backend, session, tally, begin=int(progress * len(session.turns)))
        progress = 0


async def _converse(backend: Backend, session: Session, tally: Tally, begin: int) -> None:
    messages = [Message("system", session.instructions)] if session.instructions else []
    for number, turn in enumerate(session.turns):
        messages.append(Message("user", turn.question))
        text = "x" * turn.answer_tokens
        if number >= begin:
            text = (await send(backend, session.user, messages, turn.answer_tokens, tally)).text
        messages.append(Message("assistant", text))


async def send(
    backend: Backend, user: str, messages: Sequence[Message], answer_tokens: int, tally: Tally
) -> Answer:
    """Queue one request, and follow its answer. Raises HeadraceError if it fails."""
    begin = time.perf_counter()
    request = Request(
        id=new_job_id(),
        model=MODEL,
        messages=tuple(messages),
        params=SamplingParams(max_tokens=answer_tokens, ignore_eos=True),
        user=user,
        created_at=await backend.token_log.now(),
    )
    await backend.token_log.create(request)
    await backend.transport.publish(request)
    texts: list[str] = []
    async for event in backend.token_log.follow(request.id, idle=SILENCE_S):
        if event is None:
            raise HeadraceError(f"request {request.id} received no token for {SILENCE_S:.0f} s")
        if event.tokens and not texts:
            tally.first_token_s.append(time.perf_counter() - begin)
        texts += [token.text for token in event.tokens]
        tally.tokens += len(event.tokens)
        if event.terminal is not None and event.terminal.error is not None:
            raise HeadraceError(f"request {request.id} failed: {event.terminal.error.message}")
    return Answer(request.id, "".join(texts))
