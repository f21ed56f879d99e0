"""Readers of the streams of the API: what their events are, and how chunks become one completion.

References: docs/api.md.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.client.sse import Frame
from shared.error_codes import error_classes
from shared.errors import HeadraceError, Unavailable

TERMINAL_EVENTS = ("done", "error", "cancelled")
PROMPT_FIELDS = ("prompt_token_ids", "prompt_logprobs")  # of a completion, in its first chunk

Body = Mapping[str, Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class JobEvent:
    """Server-sent event of a job: `name` is token, done, error or cancelled; `seq` is that of its last token."""

    seq: int
    name: str
    data: Json


class StreamReader(ABC):
    """Interpreter of the frames of a stream. `last_id` is the id of the last complete event."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.ended = False

    @abstractmethod
    def check(self, frame: Frame, retry: float | None) -> None:
        """Raise the error that a frame reports; `retry` is the reconnection time from the server, if any."""

    @abstractmethod
    def take(self, event: Sequence[Frame]) -> Iterable[Any]:
        """Return the items of one complete event."""


class JobStreamReader(StreamReader):
    """Reader that returns each event as a JobEvent."""

    def check(self, frame: Frame, retry: float | None) -> None:
        if frame.event == "interrupted":
            raise Unavailable("the server closed the stream and asks the client to reconnect", retry_after=retry)

    def take(self, event: Sequence[Frame]) -> Iterable[JobEvent]:
        for frame in event:
            self.ended = frame.event in TERMINAL_EVENTS
            yield JobEvent(int(frame.id or -1), frame.event, json_object(frame.data))


class EndStreamReader(JobStreamReader):
    """Reader that only waits for the end."""

    def take(self, event: Sequence[Frame]) -> Iterable[JobEvent]:
        self.ended = event[-1].event in TERMINAL_EVENTS
        return ()


class ChatStreamReader(StreamReader):
    """Reader of the chunks of a chat completion, in OpenAI's format. `job_id` is set by the first chunk."""

    job_id: str | None = None

    def check(self, frame: Frame, retry: float | None) -> None:
        if frame.data.startswith('{"error"'):
            raise error_from_body(json_object(frame.data)["error"], retry)

    def take(self, event: Sequence[Frame]) -> Iterable[Json]:
        for frame in event:
            if frame.data == "[DONE]":
                self.ended = True
                return
            chunk = json_object(frame.data)
            self.job_id = chunk["id"].replace("chatcmpl-", "req_", 1)
            yield chunk


class CompletionStreamReader(ChatStreamReader):
    """Reader that assembles the chunks into one completion."""

    def __init__(self) -> None:
        super().__init__()
        self._head: Json = {}
        self._prompt: Json = {}  # what the request asked for about its prompt
        self._usage: Json | None = None
        self._choices: dict[int, Json] = {}

    def take(self, event: Sequence[Frame]) -> Iterable[Json]:
        for chunk in super().take(event):
            self._head = {name: chunk.get(name) for name in ("id", "created", "model", "system_fingerprint")}
            self._prompt |= {name: chunk[name] for name in PROMPT_FIELDS if name in chunk}
            self._usage = chunk.get("usage") or self._usage
            for part in chunk["choices"]:
                self._add(part)
        return ()

    def _add(self, part: Json) -> None:
        empty: Json = {
            "texts": [],
            "thoughts": [],
            "calls": [],
            "finish_reason": None,
            "logprobs": [],
            "token_ids": [],
            "stop_reason": None,
        }
        choice = self._choices.setdefault(part["index"], empty)
        choice["texts"].append(part["delta"].get("content") or "")
        choice["thoughts"].append(part["delta"].get("reasoning_content") or "")
        for delta in part["delta"].get("tool_calls") or ():
            if "id" in delta:
                choice["calls"].append({"id": delta["id"], "function": delta["function"], "type": "function"})
            else:
                choice["calls"][delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
        choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
        choice["logprobs"] += (part.get("logprobs") or {}).get("content") or ()
        choice["token_ids"] += part.get("token_ids") or ()
        choice["stop_reason"] = part.get("stop_reason", choice["stop_reason"])

    def completion(self) -> Json:
        """Return the body of POST /v1/chat/completions. Raises HeadraceError if the stream had no chunks."""
        if not self._head:
            raise HeadraceError("the answer was delivered before, and has expired")
        choices = [
            {
                "index": index,
                "message": _message("".join(found["texts"]), "".join(found["thoughts"]), found["calls"]),
                "finish_reason": found["finish_reason"] or "stop",
                "logprobs": {"content": found["logprobs"], "refusal": None} if found["logprobs"] else None,
                **({"token_ids": found["token_ids"]} if found["token_ids"] else {}),
                **({} if found["stop_reason"] is None else {"stop_reason": found["stop_reason"]}),
            }
            for index, found in sorted(self._choices.items())
        ]
        completion = {"choices": choices, "usage": self._usage, "object": "chat.completion"}
        return {**self._head, **completion, **self._prompt}


def _message(text: str, reasoning: str, calls: list[Json]) -> Json:
    content = (text or None) if calls or reasoning else text
    message: Json = {"content": content, "role": "assistant", "refusal": None}
    thought: Json = {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}
    return {**message, **({"tool_calls": calls} if calls else {}), **thought}


def chunk_text(chunk: Json) -> str:
    """Return the text of a chunk, over all choices."""
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def error_from_body(body: Body, retry_after: float | None = None) -> HeadraceError:
    """Return the error of a body in OpenAI's format or RFC 9457's, as the class that its code names."""
    cls = error_classes().get(body.get("code") or "", HeadraceError)
    message = body.get("message") or body.get("detail") or body.get("title") or "the server refused the request"
    return cls(message, param=body.get("param"), retry_after=retry_after)


def json_object(content: str | bytes) -> Json:
    """Return a JSON object. Raises HeadraceError if the content is something else."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise HeadraceError("the response is not a JSON object; check that url points to Headrace")
    return found
