"""Writing of answers to the token log: appends, recordings, and what is set aside, while Redis may be away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import msgspec

from shared.backend import Backend
from shared.errors import EngineFailed, HeadraceError
from shared.protocol import Recording, RequestState, adapted_fingerprint, encode
from shared.runtime.retry import until_available
from shared.token_log.interface import Append
from shared.version import VERSION
from workers.active_request import ActiveRequest, Written
from workers.engine.interface import EngineOutput, Generator
from workers.metrics import WorkerMetrics
from workers.puller import RETRY_PAUSE_S, set_aside

RunOutput = tuple[ActiveRequest, EngineOutput]


class AnswerWriter:
    """Writes the answers of one worker.

    Args:
        recording_bytes: largest recording of a request that is kept with its answer; 0 keeps none.
    """

    def __init__(
        self, backend: Backend, engine: Generator, metrics: WorkerMetrics, *, recording_bytes: int
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._fingerprint = engine.fingerprint
        self._computation = {"headrace": VERSION, **engine.computation}
        self._most = recording_bytes if engine.tokenizer is not None else 0  # others report no token ids

    async def append(self, outputs: Sequence[RunOutput]) -> tuple[list[Written], list[ActiveRequest]]:
        """Append all outputs in one round trip, retrying while Redis is away.

        Return what was written, and the requests whose append was refused. A request that the engine could not
        compute is put among the dead letters before its end is written.
        """
        now, appends = time.monotonic(), []
        for active, output in outputs:
            append = active.append(output, now)
            if output.finished:
                append = await self._ending(active, output.error, append)
            appends.append((active, append))
        append_all = partial(self._backend.token_log.append, [append for _, append in appends])
        accepted = await until_available(append_all, pause_s=RETRY_PAUSE_S, failure_event="log_unavailable")
        if all(accepted):
            return appends, []
        refused = [active for (active, _), written in zip(appends, accepted, strict=True) if not written]
        return [each for each, written in zip(appends, accepted, strict=True) if written], refused

    async def _ending(self, active: ActiveRequest, error: HeadraceError | None, append: Append) -> Append:
        """Return the last append of a request with its recording, if any; set it aside if the engine failed."""
        if isinstance(error, EngineFailed):
            await self._set_aside(active, error)
        recording = self._recording(active, append)
        return msgspec.structs.replace(append, recording=recording) if recording else append

    async def _set_aside(self, active: ActiveRequest, error: HeadraceError) -> None:
        """Put a request among the dead letters, retrying while Redis is away."""
        losses = active.lease.losses + 1
        add = partial(set_aside, self._backend, self._metrics, active.delivery, error, losses)
        await until_available(add, pause_s=RETRY_PAUSE_S, failure_event="dead_letters_unavailable")

    def _recording(self, active: ActiveRequest, append: Append) -> bytes:
        """Return the recording to keep with the end of an answer; empty for other appends or if it is too large."""
        terminal, request = append.event.terminal, active.delivery.request
        if not self._most or terminal is None or terminal.state is not RequestState.COMPLETED or request.work:
            return b""
        adapter = request.adapter
        recording = Recording(
            request=msgspec.structs.replace(request, recorded_prompt=()),
            prompt=active.prompt,
            fingerprint=adapted_fingerprint(self._fingerprint, adapter) or "",
            computation=self._computation | ({} if adapter is None else {"adapter": adapter.digest}),
            runs=active.lease.epoch,
        )
        data = encode(recording)
        return data if len(data) <= self._most else b""
