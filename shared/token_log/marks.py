"""Marks that a token log keeps of a request's runs, and their form in the state hash on Redis.

The hash has fields per lease epoch: `run:<epoch>` is written when the lease is acquired, `mark:<epoch>` with
appends, and `first:<epoch>` with the first append of a run that continues an answer. They expire with the state.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shared.protocol import RunMark, Stay
from shared.token_log.interface import RequestMarks, RequestRecord, Run

MAX_RUNS = 16  # that are kept: the first, and the last of the others
MAX_WORKER_CHARS = 256
MAX_TIME = 1e12  # in seconds since the epoch

_mark_decoder = msgspec.json.Decoder(RunMark)
_stay_decoder = msgspec.json.Decoder(Stay)


def parse_marks(record: RequestRecord, fields: Mapping[bytes, bytes]) -> RequestMarks:
    """Return the marks in a state hash. Raises ValueError or msgspec errors for foreign content."""
    runs: dict[int, Run] = {}
    for name, value in fields.items():
        if name.startswith(b"run:"):
            epoch = int(name[4:])
            acquired, attempt, seq, logged, worker = value.decode().split(" ", 4)
            if len(worker) > MAX_WORKER_CHARS or not worker.isprintable():
                raise ValueError("not a worker's id")
            runs[epoch] = Run(epoch, worker, _time(acquired), int(attempt), int(seq), _time_or_none(logged))
    if len(runs) > MAX_RUNS:
        raise ValueError("more runs than are kept")
    for epoch, run in runs.items():
        if first := fields.get(b"first:%d" % epoch):
            run.first_append_at = _time(first.decode())
        if mark := fields.get(b"mark:%d" % epoch):
            at, content = mark.split(b" ", 1)
            run.marked_at, run.mark = _time(at.decode()), _mark_decoder.decode(content)
    stay = fields.get(b"stay")
    return RequestMarks(
        record,
        tuple(runs[epoch] for epoch in sorted(runs)),
        _stay_decoder.decode(stay) if stay else None,
        _time_or_none(fields.get(b"logged_at", b"").decode()),
    )


def _time(text: str) -> float:
    """Return a time in seconds. Raises ValueError, also for `nan` and numbers that no clock shows."""
    if not 0 <= (time := float(text)) < MAX_TIME:
        raise ValueError("not a time")
    return time


def _time_or_none(text: str) -> float | None:
    return _time(text) if text and text != "-" else None
