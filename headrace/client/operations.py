"""The calls of the API as flows: what is asked, when it is asked again, how a stream goes on where it broke off.

References: docs/api.md; RFC 9110, Retry-After.
"""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.client.sans_io import Clock, Emit, Flow, Patience, Pause, Read, Replicas, Reply, Send
from headrace.client.sse import Frame, Parser
from shared.errors import HeadraceError, QueueFull, Unavailable, error_classes

ENDINGS = ("done", "error", "cancelled")
KEEPALIVE = "keepalive"
NO_CONTENT = 204
PROXY_TROUBLE = (502, 503, 504)  # in words that are not ours

Body = Mapping[str, Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class JobEvent:
    """One server-sent event of a job: `name` is token, done, error or cancelled; `seq` that of its last token."""

    seq: int
    name: str
    data: Json


class Calls:
    """Makes the flow of each call.

    Args:
        replicas: where to send them.
        patience: seconds that a call, or a stream without progress, goes on trying.
    """

    def __init__(self, replicas: Replicas, patience: float, clock: Clock) -> None:
        self._replicas = replicas
        self._patience = patience
        self._clock = clock

    def submit(self, body: Body, key: str | None) -> Flow[Json]:
        return self._call(Send("POST", "/v1/jobs", _keyed(key), body=body))

    def job(self, job_id: str) -> Flow[Json]:
        return self._call(Send("GET", f"/v1/jobs/{job_id}"))

    def cancel(self, job_id: str) -> Flow[Json]:
        return self._call(Send("DELETE", f"/v1/jobs/{job_id}"))

    def models(self) -> Flow[list[Json]]:
        found = yield from self._call(Send("GET", "/v1/models"))
        models: list[Json] = found["data"]
        return models

    def ready(self) -> Flow[Json]:
        """Asked once: whoever waits for it asks again."""
        url = self._replicas.current
        try:
            reply = yield Send("GET", f"{url}/ready")
        except Unavailable:
            self._replicas.leave(url)
            raise
        return _decoded(reply.content)

    def dead_letters(self, limit: int, after: str | None) -> Flow[list[Json]]:
        params: dict[str, str | int] = {"limit": limit} | ({"after": after} if after else {})
        found = yield from self._call(Send("GET", "/v1/dead-letters", params=params))
        letters: list[Json] = found["data"]
        return letters

    def dead_letter(self, letter_id: str) -> Flow[Json]:
        return self._call(Send("GET", f"/v1/dead-letters/{letter_id}"))

    def replay(self, letter_id: str, key: str | None) -> Flow[Json]:
        return self._call(Send("POST", f"/v1/dead-letters/{letter_id}/replay", _keyed(key)))

    def remove(self, letter_id: str) -> Flow[Json]:
        return self._call(Send("DELETE", f"/v1/dead-letters/{letter_id}"))

    def purge(self) -> Flow[int]:
        found = yield from self._call(Send("DELETE", "/v1/dead-letters"))
        removed: int = found["removed"]
        return removed

    def events(self, job_id: str, after: int) -> Flow[None]:
        """Emits each JobEvent after seq `after` once; the last tells the end."""
        return self._follow(Send("GET", f"/v1/jobs/{job_id}/events"), JobReader(str(after)))

    def stream(self, body: Body, key: str | None) -> Flow[None]:
        """Submits a job and emits its events."""
        job = yield from self.submit(body, key)
        yield from self.events(job["id"], -1)

    def result(self, job_id: str) -> Flow[Json]:
        """The job once it has ended, however."""
        yield from self._follow(Send("GET", f"/v1/jobs/{job_id}/events"), EndReader())
        return (yield from self.job(job_id))

    def chat(self, body: Body, key: str | None, reader: ChatReader) -> Flow[None]:
        """Emits what `reader` makes of the chunks of a chat completion."""
        return self._follow(Send("POST", "/v1/chat/completions/stream", _keyed(key), body=body), reader)

    def complete(self, body: Body, key: str | None) -> Flow[Json]:
        """A whole chat completion. It is streamed all the same: so a wait of hours shows signs of life."""
        reader = CompletionReader()
        yield from self.chat({**body, "stream_options": {"include_usage": True}}, key, reader)
        return reader.completion()

    def abandon(self, reader: ChatReader) -> Flow[None]:
        """Cancel an answer that nobody reads on. Where nobody answers, the request's own limits end it."""
        if reader.job_id is not None:
            try:
                yield Send("DELETE", f"{self._replicas.current}/v1/jobs/{reader.job_id}")
            except Unavailable:
                return

    def _call(self, asked: Send) -> Flow[Json]:
        reply = yield from self._answered(asked, self._trying())
        return _decoded(reply.content)

    def _answered(self, asked: Send, patience: Patience) -> Flow[Reply]:
        """The reply of a replica that could serve it. Raises HeadraceError, as the server named it."""
        while True:
            base = self._replicas.current
            try:
                reply: Reply = yield replace(asked, url=base + asked.url)
                if reply.status < 400:
                    return reply
                raise refusal(reply, base)
            except HeadraceError as error:
                if isinstance(error, Unavailable | QueueFull):
                    self._replicas.leave(base)
                wait = patience.bear(error)
            yield Pause(wait)

    def _follow(self, asked: Send, reader: Reader) -> Flow[None]:
        """Emits the items of a stream, through lost connections, to its end."""
        patience = self._trying()
        while True:
            headers = dict(asked.headers) | ({} if reader.seen is None else {"last-event-id": reader.seen})
            reply = yield from self._answered(replace(asked, headers=headers, stream=True), patience)
            if reply.status == NO_CONTENT:
                return
            base = self._replicas.current
            try:
                yield from _read(reader, patience)
                return
            except HeadraceError as error:
                self._replicas.leave(base)
                wait = patience.bear(error)
            yield Pause(wait)

    def _trying(self) -> Patience:
        return Patience(self._patience, len(self._replicas), self._clock)


class Reader(ABC):
    """What the frames of a stream mean. `seen` is the id of the last event that came whole."""

    def __init__(self, seen: str | None = None) -> None:
        self.seen = seen
        self.ended = False

    @abstractmethod
    def check(self, frame: Frame, retry: float | None) -> None:
        """Raises what the frame says has gone wrong; `retry` is when to come back, if the server said."""

    @abstractmethod
    def take(self, event: Sequence[Frame]) -> Iterable[Any]:
        """The items of one event, whole."""


class JobReader(Reader):
    """Each event as a JobEvent."""

    def check(self, frame: Frame, retry: float | None) -> None:
        if frame.event == "interrupted":
            raise Unavailable("the server asks to connect again", retry_after=retry)

    def take(self, event: Sequence[Frame]) -> Iterable[JobEvent]:
        for frame in event:
            self.ended = frame.event in ENDINGS
            yield JobEvent(int(frame.id or -1), frame.event, _decoded(frame.data))


class EndReader(JobReader):
    """Only waits for the end."""

    def take(self, event: Sequence[Frame]) -> Iterable[JobEvent]:
        self.ended = event[-1].event in ENDINGS
        return ()


class ChatReader(Reader):
    """Each chunk of a chat completion, as OpenAI has it; `job_id` names the answer once it is known."""

    job_id: str | None = None

    def check(self, frame: Frame, retry: float | None) -> None:
        if frame.data.startswith('{"error"'):
            raise error_of(_decoded(frame.data)["error"], retry)

    def take(self, event: Sequence[Frame]) -> Iterable[Json]:
        for frame in event:
            if frame.data == "[DONE]":
                self.ended = True
                return
            chunk = _decoded(frame.data)
            self.job_id = chunk["id"].replace("chatcmpl-", "req_", 1)
            yield chunk


class CompletionReader(ChatReader):
    """Puts the chunks together again."""

    def __init__(self) -> None:
        super().__init__()
        self._head: Json = {}
        self._usage: Json | None = None
        self._choices: dict[int, Json] = {}

    def take(self, event: Sequence[Frame]) -> Iterable[Json]:
        for chunk in super().take(event):
            self._head = {name: chunk.get(name) for name in ("id", "created", "model", "system_fingerprint")}
            self._usage = chunk.get("usage") or self._usage
            for part in chunk["choices"]:
                self._add(part)
        return ()

    def _add(self, part: Json) -> None:
        empty: Json = {"texts": [], "calls": [], "finish_reason": None, "logprobs": []}
        choice = self._choices.setdefault(part["index"], empty)
        choice["texts"].append(part["delta"].get("content") or "")
        for delta in part["delta"].get("tool_calls") or ():
            if "id" in delta:
                choice["calls"].append({"id": delta["id"], "function": delta["function"], "type": "function"})
            else:
                choice["calls"][delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
        choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
        choice["logprobs"] += (part.get("logprobs") or {}).get("content") or ()

    def completion(self) -> Json:
        """As POST /v1/chat/completions gives it. Raises HeadraceError where the stream had no chunks."""
        if not self._head:
            raise HeadraceError("the answer was told before, and has expired")
        choices = [
            {
                "index": index,
                "message": _message("".join(found["texts"]), found["calls"]),
                "finish_reason": found["finish_reason"] or "stop",
                "logprobs": {"content": found["logprobs"], "refusal": None} if found["logprobs"] else None,
            }
            for index, found in sorted(self._choices.items())
        ]
        told = {"choices": choices, "usage": self._usage, "object": "chat.completion"}
        return {**self._head, **told}


def _message(text: str, calls: list[Json]) -> Json:
    said: Json = {"content": text, "role": "assistant", "refusal": None}
    return {**said, "content": text or None, "tool_calls": calls} if calls else said


def _read(reader: Reader, patience: Patience) -> Flow[None]:
    """Emits the items of one connection. Raises Unavailable where it breaks off."""
    parser, event = Parser(), []
    while chunk := (yield Read()):
        for frame in parser.feed(chunk):
            if frame.comment is not None:
                if frame.comment == KEEPALIVE:
                    patience.restart()
                continue
            reader.check(frame, parser.retry)
            event.append(frame)
            if frame.id is None:
                continue  # it comes with the event's last frame
            patience.restart()
            reader.seen = frame.id
            for item in reader.take(event):
                yield Emit(item)
            if reader.ended:
                return
            event = []
    raise Unavailable("the stream ended before the answer did", retry_after=parser.retry)


def text_of(chunk: Json) -> str:
    """What a chunk adds to the answer's text, of all choices."""
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def error_of(body: Body, retry_after: float | None = None) -> HeadraceError:
    """The server's error object, OpenAI's or RFC 9457's, as the class that its code names."""
    cls = error_classes().get(body.get("code") or "", HeadraceError)
    message = body.get("message") or body.get("detail") or body.get("title") or "the server refused"
    return cls(message, param=body.get("param"), retry_after=retry_after)


def refusal(reply: Reply, base: str) -> HeadraceError:
    """What a reply with an error status says; a proxy's own words count as trouble on the way."""
    given = reply.headers.get("retry-after", "")
    retry_after = float(given) if given.isdecimal() else None
    try:
        body = _decoded(reply.content)
    except HeadraceError:
        if reply.status in PROXY_TROUBLE:
            return Unavailable(f"{base} answered {reply.status}", retry_after=retry_after)
        raise
    problem = body.get("error", body)
    return error_of(problem if isinstance(problem, dict) else {}, retry_after)


def _decoded(content: str | bytes) -> Json:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise HeadraceError("the server's answer is no JSON object: no Headrace?")
    return found


def _keyed(key: str | None) -> dict[str, str]:
    """One key for all attempts of one call."""
    return {"idempotency-key": key or secrets.token_hex(16)}
