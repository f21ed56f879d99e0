"""Recording of a completed request: what it takes to run it again, and to explain another answer."""

from __future__ import annotations

import msgspec

from shared.protocol.request import Request


class Recording(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A completed request as the queue carried it. Its answer is in its log.

    Attributes:
        prompt: the token ids of its prompt.
        fingerprint: of the worker that completed it.
        computation: what the fingerprint was made of, by name.
        runs: how many workers ran it in turn.
    """

    request: Request
    prompt: tuple[int, ...]
    fingerprint: str
    computation: dict[str, str]
    runs: int = 1
