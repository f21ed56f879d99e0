"""Answers assembled from events: each choice's text and finish reason, and how the request ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from shared.errors import Conflict, HeadraceError, NotFound
from shared.protocol import (
    FinishReason,
    RequestState,
    Result,
    StopReason,
    Terminal,
    Token,
    TokenEvent,
    count_reasoning,
)
from shared.token_log.interface import LOST, RequestRecord, TokenLog

CANCELLED = Conflict("the request was cancelled")


@dataclass
class Choice:
    """One choice so far; in the first of each prompt, `prompt` holds its tokens, if they were asked for."""

    tokens: list[Token] = field(default_factory=list)
    prompt: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def stop_reason(self) -> StopReason | None:
        """The token or string that stopped the choice, as `Token` has it."""
        return self.tokens[-1].stop_reason if self.tokens else None

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def reasoning(self) -> str:
        return "".join(token.reasoning for token in self.tokens)


class Answer:
    """An answer that grows event by event."""

    def __init__(self) -> None:
        self._choices: dict[int, Choice] = {}
        self.terminal: Terminal | None = None

    def add(self, event: TokenEvent) -> None:
        for token in event.tokens:
            choice = self._choices.setdefault(token.choice, Choice())
            choice.tokens.append(token)
            choice.finish_reason = token.finish_reason or choice.finish_reason
        if event.prompt:
            self._choices.setdefault(event.prompt[0].choice, Choice()).prompt = event.prompt
        self.terminal = event.terminal
        for index in range(self.terminal.empty_choices if self.terminal is not None else 0):
            self._choices.setdefault(index, Choice()).finish_reason = FinishReason.LENGTH

    @property
    def reasoning_tokens(self) -> int:
        """Return the number of tokens of reasoning, over all choices."""
        return count_reasoning(token for choice in self._choices.values() for token in choice.tokens)

    @property
    def prompt(self) -> tuple[Token, ...]:
        """The tokens of the first prompt, if they were asked for."""
        return next((choice.prompt for _, choice in self.choices if choice.prompt), ())

    @property
    def choices(self) -> list[tuple[int, Choice]]:
        return sorted(self._choices.items())


def ending(terminal: Terminal) -> HeadraceError | None:
    """Return the error for a client that waits for the answer; None if the request completed."""
    if terminal.error is not None:
        return terminal.error.to_error()
    return CANCELLED if terminal.state is RequestState.CANCELLED else None


def end_of(answer: Answer) -> Terminal:
    """Return the end of a complete answer. Raises the error that the request failed with."""
    if answer.terminal is None:  # another program deleted the end
        raise LOST
    if (error := ending(answer.terminal)) is not None:
        raise error
    return answer.terminal


def result_of(answer: Answer) -> Result:
    """Return the result of a request for other work than text. Raises the error that the request failed with."""
    found = end_of(answer).result
    if found is None:
        raise LOST
    return found


def nothing_after(record: RequestRecord, seq: int) -> bool:
    """Return whether the request has ended and a reader that has seen `seq` has all of its answer."""
    return record.state.terminal and seq >= record.completion_tokens  # the seq of the terminal event


def before_end(record: RequestRecord, seq: int) -> int:
    """Return `seq`; for a finished request at most the seq before its terminal event."""
    return min(seq, record.completion_tokens - 1) if record.state.terminal else seq


async def collect(events: AsyncGenerator[TokenEvent | None]) -> Answer:
    """Collect all events into an answer."""
    answer = Answer()
    async with aclosing(events):
        async for event in events:
            if event is not None:
                answer.add(event)
    return answer


async def read_all(token_log: TokenLog, job_id: str) -> Answer:
    """Read the answer of a finished request from its log. Raises NotFound, Unavailable."""
    [answer] = await read_whole(token_log, [job_id])
    if answer is None:
        raise NotFound(f"no request {job_id}, or its answer has expired")
    return answer


async def read_whole(token_log: TokenLog, job_ids: Sequence[str]) -> list[Answer | None]:
    """Read many answers, a page of each in one round trip; None where there is no log."""
    answers = {each: Answer() for each in job_ids}
    after = dict.fromkeys(job_ids, -1)
    unknown = set()
    while after:
        pages = await token_log.read_many(after)
        for job_id, page in zip(tuple(after), pages, strict=True):
            if page is None:
                unknown.add(job_id)
            for event in page.events if page else ():
                answers[job_id].add(event)
                after[job_id] = event.last_seq
            if page is None or page.complete or not page.events:
                del after[job_id]
    return [None if each in unknown else answers[each] for each in job_ids]
