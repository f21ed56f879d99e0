"""Hand-made worker that answers requests by a script."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import FinishReason, PromptUsage, Request, RequestState, Terminal, Token, TokenEvent, Usage
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.token_log.interface import Append, Lease
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S

PROMPT_TOKENS = 5
CACHED_TOKENS = 2


class ScriptedWorker:
    """Worker that pulls requests one at a time and writes the tokens a test gives it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def announce(self, state: str = "ready", progress: float = 1.0) -> None:
        await self.backend.registry.beat(
            WorkerInfo(
                id="w1",
                pid=1,
                model=MODEL,
                state=state,
                progress=progress,
                max_model_len=1024,
                max_num_seqs=8,
                fingerprint="fp_test",
            )
        )

    async def pull(self) -> Delivery:
        """Wait for the next request and return it."""
        async with asyncio.timeout(LIMIT_S), self.backend.live.subscribe(keys.wake_channel(MODEL)) as wake:
            while True:
                for delivery in (await self.backend.transport.pull(MODEL, "w1", Room.all(1))).found:
                    assert isinstance(delivery, Delivery)
                    return delivery
                await wake.get(1.0)

    async def take(self) -> Job:
        delivery = await self.pull()
        [lease] = await self.backend.token_log.acquire([delivery.request.id], "w1", stays=[delivery.stay])
        assert lease is not None
        return Job(self.backend, delivery, lease)

    async def answer(self, *texts: str, n: int = 1, times: int = 1) -> Request:
        """Take requests, and answer each with these texts, one token per text, in each of `n` choices."""
        for _ in range(times):
            job = await self.take()
            for i, text in enumerate(texts):
                finish = FinishReason.STOP if i == len(texts) - 1 else None
                await job.write(*(Token(choice, i, text, finish) for choice in range(n)))
            await job.end()
        return job.request


@dataclass
class Job:
    """Request that the worker has leased."""

    backend: Backend
    delivery: Delivery
    lease: Lease
    seq: int = 0

    @property
    def request(self) -> Request:
        return self.delivery.request

    async def write(self, *tokens: Token, prompt: tuple[Token, ...] = ()) -> bool:
        first = PromptUsage(PROMPT_TOKENS, CACHED_TOKENS) if self.seq == 0 else None
        return await self._append(TokenEvent(self.seq, tokens, None, prompt, first))

    async def say(self, text: str) -> bool:
        return await self.write(Token(0, self.seq, text))

    async def say_all(self, texts: list[str]) -> bool:
        """Write several tokens in one append."""
        return await self.write(*(Token(0, self.seq + i, text) for i, text in enumerate(texts)))

    async def end(
        self, state: RequestState = RequestState.COMPLETED, error=None, prompt: tuple[Token, ...] = ()
    ) -> bool:
        waited = self.lease.started_at - self.request.created_at
        end = Terminal(state, Usage(PROMPT_TOKENS, self.seq, cached_tokens=CACHED_TOKENS), error, waited)
        written = await self._append(TokenEvent(self.seq, (), end, prompt))
        await self.backend.transport.acknowledge([self.delivery.claim])
        return written

    async def _append(self, event: TokenEvent) -> bool:
        (written,) = await self.backend.token_log.append([Append(self.lease, event, PROMPT_TOKENS)])
        self.seq += event.count
        return written
