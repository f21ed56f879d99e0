"""A response and the events of its stream, out of its log. It knows nothing of HTTP.

What is told depends on what was asked and on the log alone. So every replica gives every event the same number and
the same bytes. A stream goes on after any of them: the log is read from its start, and what was told is left out.

Reference: OpenAI API, "The response object" and "Streaming events". It has no event for a response that was
cancelled: response.incomplete tells of it, with the status cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from producer_api.sse import RETRY
from shared.delivery.answer import Answer, Choice
from shared.errors import HeadraceError
from shared.protocol import FinishReason, RequestState, Terminal, Token, TokenEvent
from shared.schemas.chat import Logprobs
from shared.schemas.response_items import Item, MessageItem, OutputText, Status
from shared.schemas.response_object import (
    ErrorEvent,
    IncompleteDetails,
    ItemEvent,
    ItemKind,
    NumberedEvent,
    PartEvent,
    PartKind,
    ResponseFailure,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
    StateEvent,
    StateKind,
    TextDelta,
    TextDone,
)

ENDS: dict[ResponseStatus, StateKind] = {"completed": "response.completed", "failed": "response.failed"}


def ended(asked: ResponseObject, answer: Answer) -> ResponseObject:
    """What was `asked`, with the whole of its answer."""
    assert answer.terminal is not None
    status = _status(answer)
    error = answer.terminal.error
    whole = status == "completed"
    return msgspec.structs.replace(
        asked,
        status=status,
        error=None if error is None else ResponseFailure.of(error.to_error()),
        incomplete_details=IncompleteDetails() if status == "incomplete" else None,
        output=[_message(asked, choice, "completed" if whole else "incomplete") for _, choice in answer.choices],
        usage=ResponseUsage.of(answer.terminal.usage),
    )


def _status(answer: Answer) -> ResponseStatus:
    terminal: Terminal | None = answer.terminal
    assert terminal is not None
    if terminal.state is not RequestState.COMPLETED:
        return "failed" if terminal.state is RequestState.FAILED else "cancelled"
    cut = any(choice.finish_reason is FinishReason.LENGTH for _, choice in answer.choices)
    return "incomplete" if cut else "completed"


def _message(asked: ResponseObject, choice: Choice, status: Status) -> Item:
    logprobs = Logprobs.of(choice.tokens)
    part = OutputText(choice.text, logprobs=logprobs.content if logprobs else [])
    return MessageItem(id=_message_id(asked), status=status, role="assistant", content=[part])


def _message_id(asked: ResponseObject) -> str:
    return "msg_" + asked.id.removeprefix("resp_")


class ResponseFraming:
    """One event per token that adds something, between those that tell how the response stands.

    Args:
        asked: the response before its answer.
        after: the number after which the client wants the events.
        resumable: the client can come back for the rest.
    """

    def __init__(self, asked: ResponseObject, *, after: int = -1, resumable: bool = False) -> None:
        self._asked = asked
        self._after = after
        self._resumable = resumable
        self._number = -1  # of the last event
        self._answer = Answer()
        self._begun = False
        self._message_id = _message_id(asked)
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        """What is told before anything is known of the answer."""
        waiting: StateKind = "response.queued" if self._asked.background else "response.in_progress"
        return self._state("response.created", self._asked) + self._state(waiting, self._asked)

    def event(self, event: TokenEvent) -> bytes:
        frames: list[bytes] = []
        if event.tokens and not self._begun:
            self._begun = True
            frames += self._begin()
        self._answer.add(event)
        frames += [self._delta(token) for token in event.tokens if token.text or token.logprobs is not None]
        if event.terminal is not None:
            frames += self._end(ended(self._asked, self._answer))
        return b"".join(frames)

    def interruption(self, error: HeadraceError) -> bytes:
        """It has no number of its own, so that a client goes on after the last event it has."""
        told = self._encode(
            ErrorEvent(sequence_number=self._number, code=error.code, message=error.message, param=error.param)
        )
        return (RETRY if self._resumable and error.retryable else b"") + b"event: error\ndata: %b\n\n" % told

    def _begin(self) -> Iterator[bytes]:
        if self._asked.background:
            yield self._state("response.in_progress", msgspec.structs.replace(self._asked, status="in_progress"))
        item = MessageItem(id=self._message_id, status="in_progress", role="assistant", content=[])
        yield self._item("response.output_item.added", item)
        yield self._part("response.content_part.added", OutputText(""))

    def _delta(self, token: Token) -> bytes:
        logprobs = Logprobs.of([token])
        return self._frame(
            TextDelta(
                sequence_number=self._next(),
                item_id=self._message_id,
                output_index=0,
                content_index=0,
                delta=token.text,
                logprobs=logprobs.content if logprobs else [],
            )
        )

    def _end(self, response: ResponseObject) -> Iterator[bytes]:
        for item in response.output:
            [part] = item.content
            assert isinstance(part, OutputText)
            yield self._frame(
                TextDone(
                    sequence_number=self._next(),
                    item_id=item.id,
                    output_index=0,
                    content_index=0,
                    text=part.text,
                    logprobs=part.logprobs,
                )
            )
            yield self._part("response.content_part.done", part)
            yield self._item("response.output_item.done", item)
        yield self._state(ENDS.get(response.status, "response.incomplete"), response)

    def _state(self, kind: StateKind, response: ResponseObject) -> bytes:
        return self._frame(StateEvent(kind, self._next(), response))

    def _item(self, kind: ItemKind, item: Item) -> bytes:
        return self._frame(ItemEvent(kind, self._next(), 0, item))

    def _part(self, kind: PartKind, part: OutputText) -> bytes:
        return self._frame(PartEvent(kind, self._next(), self._message_id, 0, 0, part))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _frame(self, event: NumberedEvent) -> bytes:
        """Nothing where the client has it."""
        if event.sequence_number <= self._after:
            return b""
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (
            event.sequence_number,
            event.type.encode(),
            self._encode(event),
        )
