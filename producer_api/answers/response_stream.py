"""Response objects, and the events of their streams.

The events depend only on the request and its log, so that every replica gives each event the same number and bytes.
To resume a stream after an event, the log is read from its start and the earlier events are not sent.

Reference: OpenAI API, "The response object" and "Streaming events". It has no event for a cancelled response: the
stream ends with response.incomplete, with the status cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from producer_api.answers.response_output import Change, Output
from producer_api.http.sse import RETRY
from shared.errors import HeadraceError
from shared.protocol import FinishReason, Request, RequestState, Terminal, Token, TokenEvent
from shared.schemas.openai.response_items import (
    CustomCallItem,
    FunctionCallItem,
    InputText,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningText,
    Status,
)
from shared.schemas.openai.response_object import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomInputDelta,
    CustomInputDone,
    ErrorEvent,
    IncompleteDetails,
    ItemEvent,
    NumberedEvent,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    ResponseFailure,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
    StateEvent,
    StateKind,
    TextDelta,
    TextDone,
)
from shared.schemas.openai.response_tools import CustomTold
from shared.token_log.answer import Answer, end_of
from shared.token_log.interface import RequestRecord

JOB_PREFIX, RESPONSE_PREFIX = "req_", "resp_"  # an id is the same apart from its prefix
ENDS: dict[ResponseStatus, StateKind] = {"completed": "response.completed", "failed": "response.failed"}


def job_id_of(response_id: str) -> str:
    return JOB_PREFIX + response_id.removeprefix(RESPONSE_PREFIX)


def response_id_of(job_id: str) -> str:
    return RESPONSE_PREFIX + job_id.removeprefix(JOB_PREFIX)


def with_identity(response: ResponseObject, request: Request | RequestRecord) -> ResponseObject:
    """Return the response with the id, the model and the creation time of its admitted request."""
    return msgspec.structs.replace(
        response, id=response_id_of(request.id), model=request.named_model, created_at=int(request.created_at)
    )


def complete_response(response: ResponseObject, answer: Answer) -> ResponseObject:
    """Return the response with its answer. Raises the error that the request failed with."""
    end_of(answer)
    return finished_response(response, answer)


def finished_response(response: ResponseObject, answer: Answer) -> ResponseObject:
    """Return the response with its answer, also if it failed."""
    assert answer.terminal is not None
    tokens = [token for _, choice in answer.choices for token in choice.tokens]
    status = _status(answer.terminal, tokens[-1:])
    items = Output.complete(job_id_of(response.id), _custom_tools(response), tokens, _item_status(status))
    return _with_outcome(response, status, answer.terminal, items, tokens[-1:])


def _custom_tools(response: ResponseObject) -> frozenset[str]:
    return frozenset(tool.name for tool in response.tools if isinstance(tool, CustomTold))


def _status(terminal: Terminal, last: Sequence[Token]) -> ResponseStatus:
    """Return the status of an ended response; `last` has its last token, if any."""
    if terminal.state is RequestState.COMPLETED:
        cut = terminal.empty_choices > 0 or any(
            token.finish_reason is not None and not token.finish_reason.complete for token in last
        )
        return "incomplete" if cut else "completed"
    return "failed" if terminal.state is RequestState.FAILED else "cancelled"


def _item_status(status: ResponseStatus) -> Status:
    return "completed" if status == "completed" else "incomplete"


def _with_outcome(
    response: ResponseObject,
    status: ResponseStatus,
    terminal: Terminal,
    output: list[OutputItem],
    last: Sequence[Token],
) -> ResponseObject:
    filtered = any(token.finish_reason is FinishReason.CONTENT_FILTER for token in last)
    details = IncompleteDetails("content_filter" if filtered else "max_output_tokens")
    return msgspec.structs.replace(
        response,
        status=status,
        error=None if terminal.error is None else ResponseFailure.from_error(terminal.error.to_error()),
        incomplete_details=details if status == "incomplete" else None,
        output=output,
        usage=ResponseUsage.from_usage(terminal.usage),
    )


class ResponseFraming:
    """Frames of a response's stream: an event per token that adds something, and those of state changes.

    Args:
        response: the response before its answer.
        after: the number of the last event that the client has.
        resumable: the client can resume the stream.
    """

    def __init__(self, response: ResponseObject, *, after: int = -1, resumable: bool = False) -> None:
        self._response = response
        self._after = after
        self._resumable = resumable
        self._number = -1  # of the last event
        self._output = Output(job_id_of(response.id), _custom_tools(response))
        self._last: tuple[Token, ...] = ()
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        waiting: StateKind = "response.queued" if self._response.background else "response.in_progress"
        return self._state("response.created", self._response) + self._state(waiting, self._response)

    def event(self, event: TokenEvent) -> bytes:
        frames: list[bytes] = []
        if event.tokens and not self._last and self._response.background:
            running = msgspec.structs.replace(self._response, status="in_progress")
            frames.append(self._state("response.in_progress", running))
        self._last = event.tokens[-1:] or self._last
        for token in event.tokens:
            for change in self._output.feed(token):
                frames += self._changed(change)
        if event.terminal is not None:
            frames += self._end(event.terminal)
        return b"".join(frames)

    def interruption(self, error: HeadraceError) -> bytes:
        """Return an error event. It repeats the last number, so that a client resumes after that event."""
        data = self._encode(
            ErrorEvent(sequence_number=self._number, code=error.code, message=error.message, param=error.param)
        )
        return (RETRY if self._resumable and error.retryable else b"") + b"event: error\ndata: %b\n\n" % data

    def _end(self, terminal: Terminal) -> Iterator[bytes]:
        status = _status(terminal, self._last)
        for change in self._output.end(_item_status(status)):
            yield from self._changed(change)
        response = _with_outcome(self._response, status, terminal, self._output.items, self._last)
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
        elif change.kind == "reasoning":
            yield self._frame(
                ReasoningDelta(
                    sequence_number=self._next(),
                    item_id=item.id,
                    output_index=index,
                    content_index=0,
                    delta=change.delta,
                )
            )
        elif change.kind == "arguments":
            yield self._frame(
                ArgumentsDelta(
                    sequence_number=self._next(), item_id=item.id, output_index=index, delta=change.delta
                )
            )
        elif change.kind == "input":
            yield self._frame(
                CustomInputDelta(
                    sequence_number=self._next(), item_id=item.id, output_index=index, delta=change.delta
                )
            )
        elif change.kind == "begun":
            yield self._frame(ItemEvent("response.output_item.added", self._next(), index, item))
            if not isinstance(item, FunctionCallItem | CustomCallItem):
                part = OutputText("") if isinstance(item, MessageItem) else ReasoningText("")
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
        elif isinstance(item, CustomCallItem):
            yield self._frame(
                CustomInputDone(sequence_number=self._next(), item_id=item.id, output_index=index, input=item.input)
            )
        else:
            [part] = item.content
            assert not isinstance(part, InputText)  # a part of the caller's
            yield self._frame(self._text_done(index, item, part))
            yield self._frame(PartEvent("response.content_part.done", self._next(), item.id, index, 0, part))
        yield self._frame(ItemEvent("response.output_item.done", self._next(), index, item))

    def _text_done(
        self, index: int, item: OutputItem, part: OutputText | ReasoningText
    ) -> TextDone | ReasoningDone:
        place: dict[str, Any] = {
            "sequence_number": self._next(),
            "item_id": item.id,
            "output_index": index,
            "content_index": 0,
        }
        if isinstance(part, OutputText):
            return TextDone(**place, text=part.text, logprobs=part.logprobs)
        return ReasoningDone(**place, text=part.text)

    def _state(self, kind: StateKind, response: ResponseObject) -> bytes:
        return self._frame(StateEvent(kind, self._next(), response))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _frame(self, event: NumberedEvent) -> bytes:
        """Return the frame of an event; empty if the client has it."""
        if event.sequence_number <= self._after:
            return b""
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (
            event.sequence_number,
            event.type.encode(),
            self._encode(event),
        )
