"""Several answers merged into one: choices numbered consecutively, events as they arrive, one terminal event.

A reader's position is the last seq of each answer, joined by dots.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from shared.protocol import Request, RequestState, Result, Terminal, Token, TokenEvent, Usage
from shared.token_log.interface import TokenLog

Events = AsyncGenerator[TokenEvent | None]


class MergedEvent(TokenEvent, frozen=True):
    """Event of one of several answers; `seq` is that answer's."""

    all_places: str = ""

    @property
    def place(self) -> str:
        return self.all_places


def follow_all(
    token_log: TokenLog, requests: Sequence[Request], after: Sequence[int], *, idle: float, again: bool = False
) -> Events:
    """Follow the answers of several requests of n choices each, from a position in each.

    Choice c of answer i becomes i * n + c. Ends after the last answer's end, or with the first that failed. None of
    them may have ended before its position, since no terminal event would arrive. `again` repeats all events from
    the start, for a reader at that position.
    """
    starts = [-1] * len(after) if again else after
    followed = [token_log.follow(each.id, start, idle=idle) for each, start in zip(requests, starts, strict=True)]
    return followed[0] if len(followed) == 1 else _merged(followed, requests[0].params.n, list(after))


async def _merged(parts: Sequence[Events], n: int, seen: list[int]) -> Events:
    left = set(range(len(parts)))
    used, empty_choices = Usage(0, 0), 0
    results: list[Result | None] = [None] * len(parts)
    async with aclosing(_interleaved(parts)) as events:
        async for i, event in events:
            if event is None:
                if i == min(left):  # one report of silence is enough
                    yield None
                continue
            seen[i] = max(seen[i], event.last_seq)
            end = event.terminal
            if end is not None:
                left.discard(i)
                used += end.usage
                empty_choices += end.empty_choices
                results[i] = end.result
                whole = not left or end.state is not RequestState.COMPLETED
                merged = {"usage": used, "result": joined(results), "empty_choices": empty_choices}
                end = msgspec.structs.replace(end, **merged) if whole else None
            yield _renumbered(event, i * n, end, ".".join(map(str, seen)))
            if end is not None:
                return


def joined(results: Sequence[Result | None]) -> Result | None:
    """Concatenate the vectors of all results; None without any."""
    found = [result for result in results if result is not None and result.vectors]
    if not found:
        return None
    vectors = tuple(vector for result in found for vector in result.vectors)
    return msgspec.structs.replace(found[0], vectors=vectors)


def _renumbered(event: TokenEvent, first: int, end: Terminal | None, place: str) -> MergedEvent:
    def moved(tokens: Sequence[Token]) -> tuple[Token, ...]:
        return tuple(msgspec.structs.replace(token, choice=token.choice + first) for token in tokens)

    return MergedEvent(event.seq, moved(event.tokens), end, moved(event.prompt), event.prompt_usage, place)


async def _interleaved(parts: Sequence[Events]) -> AsyncGenerator[tuple[int, TokenEvent | None]]:
    """Yield events of all parts as they arrive; at most one event of each is read ahead."""
    coming = {asyncio.ensure_future(anext(part)): i for i, part in enumerate(parts)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: coming[task]):
                i = coming.pop(task)
                try:
                    event = task.result()
                except StopAsyncIteration:
                    continue
                yield i, event
                coming[asyncio.ensure_future(anext(parts[i]))] = i
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for part in parts:
            await part.aclose()
