"""Hand-made requests and answers."""

from __future__ import annotations

import asyncio

from shared.backend import Backend
from shared.protocol import PriorityClass, Request, SamplingParams, Ticket, Token, TokenEvent, new_job_id
from shared.redis import keys
from shared.token_log.interface import RequestRecord
from tests.support.waiting import LIMIT_S

MODEL = "scripted"
EMBEDDER = "minilm"


async def one_model() -> list[str]:
    return [MODEL]


def make_request(
    prompt: str = "hello",
    *,
    max_tokens: int | None = 8,
    n: int = 1,
    priority: PriorityClass = PriorityClass.STANDARD,
    created_at: float = 0.0,
    deadline: float | None = None,
    tenant: str = "default",
    ttft_target: float | None = None,
    refuse_late: bool = False,
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, n=n, seed=7)
    return Request(
        id=new_job_id(),
        model=MODEL,
        prompt=prompt,
        params=params,
        priority=priority,
        created_at=created_at,
        deadline=deadline,
        tenant=tenant,
        ttft_target=ttft_target,
        refuse_late=refuse_late,
    )


def token_event(seq: int, *texts: str) -> TokenEvent:
    return TokenEvent(seq, tuple(Token(0, 100 + seq + i, text) for i, text in enumerate(texts)))


async def submit(backend: Backend, request: Request) -> Ticket:
    await backend.token_log.create(request)
    return await backend.transport.publish(request)


async def answer(backend: Backend, job_id: str) -> list[TokenEvent]:
    """Return all events of a job, from its start to its end."""
    return [event async for event in backend.token_log.follow(job_id, idle=LIMIT_S) if event is not None]


def end_of(events: list[TokenEvent]) -> tuple[str, str | None]:
    """Return the state in which an answer ended, and the code of its error."""
    terminal = events[-1].terminal
    assert terminal is not None
    return terminal.state.value, terminal.error.code if terminal.error else None


async def ended(backend: Backend, job_id: str) -> RequestRecord:
    """Wait for the end of a job, and return its record."""
    async with asyncio.timeout(LIMIT_S):
        async for _ in backend.token_log.follow(job_id, idle=LIMIT_S):
            pass
    record = await backend.token_log.record(job_id)
    assert record is not None
    return record


async def lapse(backend: Backend, model: str = MODEL) -> None:
    """Let the leases of all held deliveries lapse, without waiting for it."""
    idle_ms = 3_600_000
    for stream in (keys.queue(model, priority) for priority in PriorityClass):
        if not await backend.redis.exists(stream):
            continue
        for held in await backend.redis.xpending_range(stream, keys.GROUP, "-", "+", 1000):
            entry, holder = held["message_id"], held["consumer"]
            await backend.redis.xclaim(stream, keys.GROUP, holder, 0, [entry], idle=idle_ms, justid=True)


async def publish_garbage(backend: Backend, payload: bytes) -> Ticket:
    """Put a message that is not a request into the queue, as another version's client might do."""
    ticket = await backend.transport.publish(make_request())
    [_, waiting, *_] = keys.transport(MODEL)
    await backend.redis.hset(waiting, ticket.job_id, b"1:1:0:" + payload)
    return ticket
