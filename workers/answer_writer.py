"""Writing of answers to the token log: appends, recordings, and what is set aside, while Redis may be away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
import structlog

from shared.backend import Backend
from shared.errors import HeadraceError, Unavailable
from shared.protocol import Recording, RequestState, encode
from shared.token_log.interface import Append
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineOutput, Generator
from workers.puller import RETRY_PAUSE_S, set_aside

log = structlog.get_logger(__name__)
Outputs = tuple[ActiveRequest, list[EngineOutput]]


class AnswerWriter:
    """Writes the answers of one worker.

    Args:
        recording_bytes: largest recording of a request that is kept with its answer; 0 keeps none.
    """

    def __init__(self, backend: Backend, engine: Generator, *, recording_bytes: int) -> None:
        self._backend = backend
        self._fingerprint = engine.fingerprint
        self._computation = {"headrace": version("headrace"), **engine.computation}
        self._most = recording_bytes if engine.tokenizer is not None else 0  # others report no token ids

    async def append(self, grouped: Sequence[Outputs]) -> list[tuple[Append, bool]]:
        """Append all outputs in one round trip, retrying while Redis is away. Return whether each was written."""
        appends = [self._append_of(active, outputs) for active, outputs in grouped]
        while True:
            try:
                return list(zip(appends, await self._backend.token_log.append(appends), strict=True))
            except Unavailable as error:
                log.warning("log_unavailable", error=error.message)
                await asyncio.sleep(RETRY_PAUSE_S)

    async def set_aside(self, active: ActiveRequest, error: HeadraceError) -> None:
        """Put a request among the dead letters, retrying while Redis is away."""
        while True:
            try:
                await set_aside(self._backend, active.delivery.request, error, active.lease.losses + 1)
                return
            except Unavailable as outage:
                log.warning("dead_letters_unavailable", error=outage.message)
                await asyncio.sleep(RETRY_PAUSE_S)

    def _append_of(self, active: ActiveRequest, outputs: list[EngineOutput]) -> Append:
        append = active.append(outputs)
        recording = self._recording(active, append)
        return msgspec.structs.replace(append, recording=recording) if recording else append

    def _recording(self, active: ActiveRequest, append: Append) -> bytes:
        """Return the recording to keep with the end of an answer; empty for other appends or if it is too large."""
        terminal, request = append.event.terminal, active.delivery.request
        if not self._most or terminal is None or terminal.state is not RequestState.COMPLETED or request.work:
            return b""
        recording = Recording(
            request=msgspec.structs.replace(request, recorded_prompt=()),
            prompt=active.prompt,
            fingerprint=self._fingerprint,
            computation=self._computation,
            runs=active.lease.epoch,
        )
        data = encode(recording)
        return data if len(data) <= self._most else b""
