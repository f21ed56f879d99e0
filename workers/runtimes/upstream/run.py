"""One request at an upstream server, with its attempts: it ends in exactly one final output."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
import structlog

from shared.errors import HeadraceError, InvalidRequest, Unavailable, UpstreamFailed
from shared.protocol import FinishReason, Token, Usage
from shared.settings import UpstreamResume
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.stage import Stage
from workers.runtimes.upstream.body import BodyWriter
from workers.runtimes.upstream.chunks import UNKNOWN_ID, Chunk, ChunkReader
from workers.runtimes.upstream.client import UpstreamClient
from workers.runtimes.upstream.failures import Broken, Busy
from workers.runtimes.upstream.health import Health
from workers.runtimes.upstream.outbox import Outbox
from workers.runtimes.upstream.progress import Progress, Repetition
from workers.runtimes.upstream.silence_limit import SilenceLimit

FIRST_PAUSE_S = 0.25  # before another attempt; it doubles
FIRST_BUSY_PAUSE_S = 1.0  # without a Retry-After
MAX_BUSY_PAUSE_S = 30.0
MAX_RETRY_AFTER_S = 120.0  # that a request waits for
MAX_BUSY_ANSWERS = 8  # in a row
AFTER_END_S = 5.0  # for the counts and the end of an answer whose choices have all ended

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Attempts:
    """Treatment of an answer that breaks off.

    Attributes:
        most: attempts that may fail.
        log_tokens: maximum entries in the log of one answer.
        silence: seconds without a part of an answer after which an attempt has failed.
    """

    resume: UpstreamResume
    most: int
    log_tokens: int
    silence: float


@dataclass(frozen=True)
class Service:
    """Parts shared by all runs."""

    client: UpstreamClient
    health: Health
    attempts: Attempts
    outbox: Outbox


class Run:
    """Runs one request, which has its source."""

    def __init__(self, request: EngineRequest, writer: BodyWriter, service: Service) -> None:
        assert request.source is not None
        self.id = request.id
        self.params = request.source.request.params
        self.priority = request.priority
        self._prompt = request.source.request.prompt
        self._writer = writer
        self._client = service.client
        self._health = service.health
        self._attempts = service.attempts
        self._outbox = service.outbox
        self._progress = Progress(self.params.n, request.source.logged)
        self._has_prompt = self._progress.begun  # it accompanies the first token
        self._usage: Usage | None = None

    async def answer(self) -> None:
        """Emit the answer, and then its end."""
        error: HeadraceError | None = None
        try:
            with Stage("exchange with the upstream server", run_id=self.id):
                await self._complete()
        except HeadraceError as failure:
            error = failure
        self._outbox.put(EngineOutput(self.id, finished=True, error=error, usage=self._usage), 0)

    async def _complete(self) -> None:
        """Make attempts until the answer is complete. Raises the HeadraceError that ends it."""
        failed = busy = 0
        while not self._progress.is_complete():
            await self._health.wait()
            before = self._progress.entries
            try:
                await self._attempt()
            except Busy as error:
                busy += 1
                await self._pause(error, busy)
            except Broken as error:
                if self._progress.is_complete():  # only the counts are lost
                    return
                failed, busy = failed + 1, 0
                self._health.suspect()
                if failed >= self._attempts.most or (self._attempts.resume == "fail" and self._progress.begun):
                    raise UpstreamFailed(f"{error} (attempt {failed} of {self._attempts.most})") from None
                entries = self._progress.entries - before
                log.warning("upstream_attempt_failed", run_id=self.id, reason=str(error), entries=entries)
                await asyncio.sleep(FIRST_PAUSE_S * 2 ** (failed - 1))

    async def _pause(self, error: Busy, answers: int) -> None:
        """Wait as long as a busy server asks for. Raises Unavailable if that is too long or too often."""
        pause = error.seconds
        if pause is None:
            pause = min(FIRST_BUSY_PAUSE_S * 2 ** (answers - 1), MAX_BUSY_PAUSE_S)
            self._health.suspect()  # llama.cpp says so while it loads the model
        if answers >= MAX_BUSY_ANSWERS or pause > MAX_RETRY_AFTER_S:
            raise Unavailable(str(error), retry_after=error.seconds)
        await asyncio.sleep(pause)

    async def _attempt(self) -> None:
        """Ask for the answer, or for the rest of one that has begun, and emit what is new."""
        begun = self._progress.begun
        if begun and self._attempts.resume == "fail":
            raise UpstreamFailed("the answer was interrupted, and upstream_resume is fail")
        continues = begun and self._attempts.resume == "continue" and self._writer.can_continue(self._progress)
        written = self._progress.choices[0]
        if continues and self.params.max_tokens is not None and written.entries >= self.params.max_tokens:
            self._add([Token(0, UNKNOWN_ID, "", FinishReason.LENGTH)], 0)
            return
        body = self._writer.rest(written) if continues else self._writer.whole()
        repetition = Repetition(self._progress) if begun and not continues else None
        earlier = written.entries if continues else 0
        self._usage = None  # an earlier attempt may have sent the counts of its part
        reader = ChunkReader(self.params.n, include_reasoning=self.params.include_reasoning)
        async with (
            aclosing(self._client.events(self._writer.route, body)) as events,
            SilenceLimit(self._attempts.silence) as limit,
        ):
            while (found := await limit.await_part(events)) is not None:
                for data in found:
                    chunk = self._client.parse(data)
                    if self._add_chunk(chunk, len(data), reader, repetition):
                        limit.extend(AFTER_END_S if self._progress.is_complete() else self._attempts.silence)
                    if chunk.usage is not None:
                        self._usage = _total(chunk.usage.usage(), earlier)
                    if self._progress.entries >= self._attempts.log_tokens:
                        self._cut_off()
                        return
                if self._outbox.is_full:
                    await self._outbox.room()
        if not self._progress.is_complete():
            raise Broken("the upstream server's answer ended without a finish reason")

    def _add_chunk(self, chunk: Chunk, size: int, reader: ChunkReader, repetition: Repetition | None) -> bool:
        """Emit what a chunk adds to the answer. Return whether it has a part of the answer, not only a role."""
        tokens = found = [token for choice in chunk.choices for token in reader.tokens(choice)]
        if repetition is not None:
            tokens = repetition.new(tokens)
        if tokens:
            self._add(tokens, size, () if self._has_prompt else chunk.prompt_ids)
        return bool(found)

    def _add(self, tokens: list[Token], size: int, prompt_ids: Sequence[int] = ()) -> None:
        self._progress.add(tokens)
        output = EngineOutput(self.id, tuple(tokens), prompt=self._first_prompt(prompt_ids))
        self._outbox.put(output, size)

    def _first_prompt(self, ids: Sequence[int]) -> tuple[Token, ...]:
        """Return the prompt with the first tokens, if the request asks for it."""
        if self._has_prompt:
            return ()
        self._has_prompt = True
        text = self._prompt if isinstance(self._prompt, str) and self.params.echo else ""
        if self.params.return_token_ids:
            if not ids:
                raise InvalidRequest(
                    "the upstream server of this model sent no token ids of the prompt",
                    param="return_token_ids",
                )
            return (*(Token(0, each, "") for each in ids[:-1]), Token(0, ids[-1], text))
        return (Token(0, UNKNOWN_ID, text),) if text else ()

    def _cut_off(self) -> None:
        """End the choices that are left: the log of the answer is full."""
        left = [index for index, choice in enumerate(self._progress.choices) if not choice.finished]
        self._add([Token(index, UNKNOWN_ID, "", FinishReason.LENGTH) for index in left], 0)


def _total(found: Usage, earlier: int) -> Usage:
    """Return the usage of an answer whose first `earlier` entries were sent as a part of the prompt."""
    return msgspec.structs.replace(
        found,
        prompt_tokens=max(0, found.prompt_tokens - earlier),
        completion_tokens=found.completion_tokens + earlier,
    )
