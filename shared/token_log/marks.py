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

_mark_decoder = msgspec.json.Decoder(RunMark)
_stay_decoder = msgspec.json.Decoder(Stay)


def parse_marks(record: RequestRecord, fields: Mapping[bytes, bytes]) -> RequestMarks:
    """Return the marks in a state hash. Raises ValueError or msgspec errors for foreign content."""
    runs: dict[int, Run] = {}
    for name, value in fields.items():
        if name.startswith(b"run:"):
            epoch = int(name[4:])
            acquired, attempt, seq, logged, worker = value.decode().split(" ", 4)
            runs[epoch] = Run(epoch, worker, float(acquired), int(attempt), int(seq), _time(logged))
    for epoch, run in runs.items():
        if first := fields.get(b"first:%d" % epoch):
            run.first_append_at = float(first)
        if mark := fields.get(b"mark:%d" % epoch):
            at, content = mark.split(b" ", 1)
            run.marked_at, run.mark = float(at), _mark_decoder.decode(content)
    stay = fields.get(b"stay")
    return RequestMarks(
        record,
        tuple(runs[epoch] for epoch in sorted(runs)),
        _stay_decoder.decode(stay) if stay else None,
        _time(fields.get(b"logged_at", b"").decode()),
    )


def _time(text: str) -> float | None:
    return float(text) if text and text != "-" else None
