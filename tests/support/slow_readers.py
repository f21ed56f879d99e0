"""Long answers for readers that do not read."""

from __future__ import annotations

from shared.protocol import Token, TokenEvent
from shared.token_log.interface import Append
from tests.support.api_process import MIB
from tests.support.scripted_worker import PROMPT_TOKENS, Job

READERS = 20
EVENTS, TEXT = 5_000, "x" * 1_000
MAX_READER_BYTES = 2 * MIB  # of one stalled reader: a page of the log, the live messages, the socket's buffer


async def write_all(job: Job) -> None:
    for start in range(job.seq, job.seq + EVENTS, 500):
        events = [TokenEvent(seq, (Token(0, seq, TEXT),)) for seq in range(start, start + 500)]
        written = await job.backend.token_log.append([Append(job.lease, event, PROMPT_TOKENS) for event in events])
        assert all(written)
    job.seq += EVENTS
    await job.end()
