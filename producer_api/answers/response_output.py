"""Output items of a response, built token by token, and the changes that a stream reports.

Reasoning becomes an item, text a message, and each tool call an item of its own. An item ends where the next one
starts.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from producer_api.answers.custom_input import CustomInput
from shared.protocol import CallDelta, Token
from shared.schemas.openai.logprobs import TokenLogprob
from shared.schemas.openai.response_items import (
    CustomCallItem,
    FunctionCallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
)
from shared.schemas.tools import call_id

Kind = Literal["begun", "reasoning", "text", "arguments", "input", "done"]


@dataclass(frozen=True)
class Change:
    """Change of item `index`: it began, got `delta` as part of its text, arguments or input, or is done."""

    kind: Kind
    index: int
    item: OutputItem
    delta: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class Output:
    """Output of one response. Text, arguments and input are set when an item is done.

    Args:
        job_id: all ids derive from it, so that they are the same on every replica.
        custom_tools: names of the tools whose calls have free text instead of arguments.
    """

    def __init__(self, job_id: str, custom_tools: Container[str]) -> None:
        self.items: list[OutputItem] = []
        self._job_id = job_id
        self._name = job_id.removeprefix("req_")
        self._custom_tools = custom_tools
        self._custom_input = CustomInput()  # of the last item
        self._pieces: list[str] = []  # text or arguments of the last item
        self._logprobs: list[TokenLogprob] = []  # of the last item
        self._pending: list[TokenLogprob] = []  # of tokens whose text was not emitted yet

    @classmethod
    def complete(
        cls, job_id: str, custom_tools: Container[str], tokens: Iterable[Token], status: Status
    ) -> list[OutputItem]:
        """Build the items of an answer that has ended."""
        made = cls(job_id, custom_tools)
        for token in tokens:
            list(made.feed(token))
        list(made.end(status))
        return made.items

    def feed(self, token: Token) -> Iterator[Change]:
        """Add a token."""
        if token.reasoning:
            yield from self._add_reasoning(token.reasoning)
        if token.logprobs is not None and not token.is_reasoning:
            self._pending.append(TokenLogprob.from_token(token))
        if token.text:
            yield from self._add_text(token.text)
        for delta in token.calls:
            yield from self._add_call(delta)

    def end(self, status: Status) -> Iterator[Change]:
        """End the last item with the answer's status. A completed answer always has an item, even without text."""
        if self._pending and isinstance(self._last, MessageItem):
            yield from self._add_text("")
        if not self.items and status == "completed":
            yield self._begin(self._message())
        yield from self._finish(status)

    @property
    def _last(self) -> OutputItem | None:
        return self.items[-1] if self.items else None

    def _add_reasoning(self, text: str) -> Iterator[Change]:
        if not isinstance(self._last, ReasoningItem):
            yield from self._finish("completed")
            yield self._begin(self._reasoning())
        self._pieces.append(text)
        yield self._change("reasoning", text)

    def _add_text(self, text: str) -> Iterator[Change]:
        if not isinstance(self._last, MessageItem):
            yield from self._finish("completed")
            yield self._begin(self._message())
        logprobs, self._pending = self._pending, []
        self._logprobs += logprobs
        self._pieces.append(text)
        yield self._change("text", text, tuple(logprobs))

    def _add_call(self, delta: CallDelta) -> Iterator[Change]:
        self._pending = []
        if delta.name:
            yield from self._finish("completed")
            yield self._begin(self._custom(delta) if delta.name in self._custom_tools else self._function(delta))
        if isinstance(self._last, CustomCallItem):
            yield from self._add_input(self._custom_input.feed(delta.arguments))
        elif delta.arguments:
            self._pieces.append(delta.arguments)
            yield self._change("arguments", delta.arguments)

    def _add_input(self, text: str) -> Iterator[Change]:
        if text:
            self._pieces.append(text)
            yield self._change("input", text)

    def _reasoning(self) -> ReasoningItem:
        return ReasoningItem(id=f"rs_{self._name}", status="in_progress", content=[])

    def _message(self) -> MessageItem:
        suffix = f"_{len(self.items)}" if self.items else ""
        return MessageItem(id=f"msg_{self._name}{suffix}", status="in_progress", role="assistant", content=[])

    def _function(self, delta: CallDelta) -> FunctionCallItem:
        return FunctionCallItem(
            id=f"fc_{self._name}_{delta.index}",
            status="in_progress",
            call_id=call_id(self._job_id, 0, delta.index),
            name=delta.name,
            arguments="",
        )

    def _custom(self, delta: CallDelta) -> CustomCallItem:
        return CustomCallItem(
            id=f"ctc_{self._name}_{delta.index}",
            status="in_progress",
            call_id=call_id(self._job_id, 0, delta.index),
            name=delta.name,
            input="",
        )

    def _begin(self, item: OutputItem) -> Change:
        self.items.append(item)
        self._pieces, self._logprobs, self._custom_input = [], [], CustomInput()
        return self._change("begun")

    def _finish(self, status: Status) -> Iterator[Change]:
        last = self._last
        if last is None:
            return
        if isinstance(last, CustomCallItem):
            yield from self._add_input(self._custom_input.end())
        last.status = status
        text = "".join(self._pieces)
        if isinstance(last, MessageItem):
            last.content = [OutputText(text, logprobs=self._logprobs)]
        elif isinstance(last, ReasoningItem):
            last.content = [ReasoningText(text)]
        elif isinstance(last, CustomCallItem):
            last.input = text
        else:
            last.arguments = text
        yield self._change("done")

    def _change(self, kind: Kind, delta: str = "", logprobs: tuple[TokenLogprob, ...] = ()) -> Change:
        return Change(kind, len(self.items) - 1, self.items[-1], delta, logprobs)
