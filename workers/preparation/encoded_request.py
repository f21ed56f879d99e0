"""A request as token ids."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import Result


@dataclass(frozen=True)
class EncodedRequest:
    """Token ids for the engine: a prompt, or concatenated inputs with the facts that `EngineRequest` has of them.

    If `result` is set, the request needs no engine.
    """

    prompt: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    second_starts: tuple[int, ...] = ()
    result: Result | None = None
