"""A response and the events of its stream, out of its log. It knows nothing of HTTP.

What is told depends on what was asked and on the log alone. So every replica gives every event the same number and
the same bytes. A stream goes on after any of them: the log is read from its start, and what was told is left out.

Reference: OpenAI API, "The response object" and "Streaming events". It has no event for a response that was
cancelled: response.incomplete tells of it, with the status cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from producer_api.answers.response_output import Change, Output
from producer_api.http.sse import RETRY
from shared.errors import HeadraceError
from shared.protocol import Request, RequestState, Terminal, Token, TokenEvent
from shared.schemas.openai.response_items import FunctionCallItem, MessageItem, OutputItem, OutputText, Status
from shared.schemas.openai.response_object import (
    ArgumentsDelta,
    ArgumentsDone,
    ErrorEvent,
    IncompleteDetails,
    ItemEvent,
    NumberedEvent,
    PartEvent,
    ResponseFailure,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
    StateEvent,
    StateKind,
    TextDelta,
    TextDone,
)
from shared.token_log.answer import Answer, end_of
from shared.token_log.interface import RequestRecord

OURS, THEIRS = "req_", "resp_"  # one id, as a request's and as a response's
ENDS: dict[ResponseStatus, StateKind] = {"completed": "response.completed", "failed": "response.failed"}


def job_id_of(response_id: str) -> str:
    return OURS + response_id.removeprefix(THEIRS)


def response_id_of(job_id: str) -> str:
    return THEIRS + job_id.removeprefix(OURS)


def admitted(asked: ResponseObject, request: Request | RequestRecord) -> ResponseObject:
    """With what admission gave it."""
    return msgspec.structs.replace(asked, id=response_id_of(request.id), created_at=int(request.created_at))


def whole(asked: ResponseObject, answer: Answer) -> ResponseObject:
    """As `ended`, for a client that waits for it. Raises what the request failed of."""
    end_of(answer)
    return ended(asked, answer)


def ended(asked: ResponseObject, answer: Answer) -> ResponseObject:
    """What was `asked`, with the whole of its answer."""
    assert answer.terminal is not None
    tokens = [token for _, choice in answer.choices for token in choice.tokens]
    status = _status(answer.terminal, tokens[-1:])
    return _told(asked, status, answer.terminal, Output.whole(job_id_of(asked.id), tokens, _item_status(status)))


def _status(terminal: Terminal, last: Sequence[Token]) -> ResponseStatus:
    """How it ended, with this as its last token, if it has any."""
    if terminal.state is RequestState.COMPLETED:
        cut = any(token.finish_reason is not None and not token.finish_reason.complete for token in last)
        return "incomplete" if cut else "completed"
    return "failed" if terminal.state is RequestState.FAILED else "cancelled"


def _item_status(status: ResponseStatus) -> Status:
    return "completed" if status == "completed" else "incomplete"


def _told(
    asked: ResponseObject, status: ResponseStatus, terminal: Terminal, output: list[OutputItem]
) -> ResponseObject:
    return msgspec.structs.replace(
        asked,
        status=status,
        error=None if terminal.error is None else ResponseFailure.from_error(terminal.error.to_error()),
        incomplete_details=IncompleteDetails() if status == "incomplete" else None,
        output=output,
        usage=ResponseUsage.from_usage(terminal.usage),
    )


class ResponseFraming:
    """One event per token that adds something, between those that tell how the response and its items stand.

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
        self._output = Output(job_id_of(asked.id))
        self._last: tuple[Token, ...] = ()
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        waiting: StateKind = "response.queued" if self._asked.background else "response.in_progress"
        return self._state("response.created", self._asked) + self._state(waiting, self._asked)

    def event(self, event: TokenEvent) -> bytes:
        frames: list[bytes] = []
        if event.tokens and not self._last and self._asked.background:
            running = msgspec.structs.replace(self._asked, status="in_progress")
            frames.append(self._state("response.in_progress", running))
        self._last = event.tokens[-1:] or self._last
        for token in event.tokens:
            for change in self._output.feed(token):
                frames += self._changed(change)
        if event.terminal is not None:
            frames += self._end(event.terminal)
        return b"".join(frames)

    def interruption(self, error: HeadraceError) -> bytes:
        """It has no number of its own, so that a client goes on after the last event it has."""
        told = self._encode(
            ErrorEvent(sequence_number=self._number, code=error.code, message=error.message, param=error.param)
        )
        return (RETRY if self._resumable and error.retryable else b"") + b"event: error\ndata: %b\n\n" % told

    def _end(self, terminal: Terminal) -> Iterator[bytes]:
        status = _status(terminal, self._last)
        for change in self._output.end(_item_status(status)):
            yield from self._changed(change)
        response = _told(self._asked, status, terminal, self._output.items)
        yield self._state(ENDS.get(status, "response.incomplete"), response)

    def _changed(self, change: Change) -> Iterator[bytes]:
        item, index = change.item, change.index
        if change.kind == "text":
            yield self._frame(
                TextDelta(
                    sequence_number=self._next(),
                    item_id=item.id,
                    output_index=index,
                    content_index=0,
                    delta=change.delta,
                    logprobs=list(change.logprobs),
                )
            )
        elif change.kind == "arguments":
            yield self._frame(
                ArgumentsDelta(
                    sequence_number=self._next(), item_id=item.id, output_index=index, delta=change.delta
                )
            )
        elif change.kind == "begun":
            yield self._frame(ItemEvent("response.output_item.added", self._next(), index, item))
            if isinstance(item, MessageItem):
                part = OutputText("")
                yield self._frame(PartEvent("response.content_part.added", self._next(), item.id, index, 0, part))
        else:
            yield from self._done(index, item)

    def _done(self, index: int, item: OutputItem) -> Iterator[bytes]:
        if isinstance(item, FunctionCallItem):
            yield self._frame(
                ArgumentsDone(
                    sequence_number=self._next(),
                    item_id=item.id,
                    output_index=index,
                    name=item.name,
                    arguments=item.arguments,
                )
            )
        else:
            [part] = item.content
            assert isinstance(part, OutputText)
            yield self._frame(
                TextDone(
                    sequence_number=self._next(),
                    item_id=item.id,
                    output_index=index,
                    content_index=0,
                    text=part.text,
                    logprobs=part.logprobs,
                )
            )
            yield self._frame(PartEvent("response.content_part.done", self._next(), item.id, index, 0, part))
        yield self._frame(ItemEvent("response.output_item.done", self._next(), index, item))

    def _state(self, kind: StateKind, response: ResponseObject) -> bytes:
        return self._frame(StateEvent(kind, self._next(), response))

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
