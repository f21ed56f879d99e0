"""Operations of the API as flows: requests, retries, and streams that resume after a lost connection.

References: docs/api.md; RFC 9110, Retry-After.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from urllib.parse import quote

from headrace.client.sans_io import Clock, Emit, Flow, Pause, Read, Replicas, Reply, RetryBudget, Send
from headrace.client.sse import Parser
from headrace.client.stream_readers import (
    Body,
    ChatStreamReader,
    CompletionStreamReader,
    EndStreamReader,
    JobStreamReader,
    Json,
    StreamReader,
    error_from_body,
    json_object,
)
from shared.errors import ConfigError, HeadraceError, QueueFull, Unavailable
from shared.numbers import whole

KEEPALIVE = "keepalive"
NO_CONTENT = 204
PROXY_STATUSES = (502, 503, 504)  # without a JSON body, they come from a proxy


class Operations:
    """Returns the flow of each operation.

    Args:
        retry_seconds: for how long a call, or a stream without progress, is retried.
    """

    def __init__(self, replicas: Replicas, retry_seconds: float, clock: Clock) -> None:
        self._replicas = replicas
        self._retry_seconds = retry_seconds
        self._clock = clock

    def submit(self, body: Body, key: str | None) -> Flow[Json]:
        return self._json(Send("POST", "/v1/jobs", _idempotency_header(key), body=body))

    def job(self, job_id: str) -> Flow[Json]:
        return self._json(Send("GET", f"/v1/jobs/{segment(job_id)}"))

    def timeline(self, job_id: str) -> Flow[Json]:
        return self._json(Send("GET", f"/v1/jobs/{segment(job_id)}/timeline"))

    def cancel(self, job_id: str) -> Flow[Json]:
        return self._json(Send("DELETE", f"/v1/jobs/{segment(job_id)}"))

    def models(self) -> Flow[list[Json]]:
        found = yield from self._json(Send("GET", "/v1/models"))
        models: list[Json] = found["data"]
        return models

    def set_asleep(self, model: str, asleep: bool) -> Flow[Json]:
        return self._json(Send("POST", f"/admin/models/{segment(model)}/{'sleep' if asleep else 'wake'}"))

    def administer(self, method: str, path: str, body: Body | None) -> Flow[Json]:
        reply = yield from self._send(Send(method, path, body=body), self._new_budget())
        return json_object(reply.content) if reply.content else {}

    def ready(self) -> Flow[Json]:
        """Return the body of /ready. It is sent once: callers that wait call it again."""
        url = self._replicas.current
        try:
            reply = yield Send("GET", f"{url}/ready")
        except Unavailable:
            self._replicas.skip(url)
            raise
        return json_object(reply.content)

    def dead_letters(self, limit: int, after: str | None) -> Flow[list[Json]]:
        params: dict[str, str | int] = {"limit": limit} | ({"after": after} if after else {})
        found = yield from self._json(Send("GET", "/v1/dead-letters", params=params))
        letters: list[Json] = found["data"]
        return letters

    def dead_letter(self, letter_id: str) -> Flow[Json]:
        return self._json(Send("GET", f"/v1/dead-letters/{segment(letter_id)}"))

    def recording(self, job_id: str) -> Flow[Json]:
        return self._json(Send("GET", f"/v1/jobs/{segment(job_id)}/recording"))

    def run_recording(self, recording: Body, key: str | None) -> Flow[Json]:
        body = {name: recording[name] for name in ("request", "prompt_token_ids")}
        return self._json(Send("POST", "/v1/recordings", _idempotency_header(key), body=body))

    def replay(self, letter_id: str, key: str | None) -> Flow[Json]:
        return self._json(Send("POST", f"/v1/dead-letters/{segment(letter_id)}/replay", _idempotency_header(key)))

    def remove(self, letter_id: str) -> Flow[Json]:
        return self._json(Send("DELETE", f"/v1/dead-letters/{segment(letter_id)}"))

    def purge(self) -> Flow[int]:
        found = yield from self._json(Send("DELETE", "/v1/dead-letters"))
        removed: int = found["removed"]
        return removed

    def events(self, job_id: str, after: int) -> Flow[None]:
        """Emit each JobEvent after seq `after` once; the last one is the end."""
        return self._follow(Send("GET", f"/v1/jobs/{segment(job_id)}/events"), JobStreamReader(str(after)))

    def stream(self, body: Body, key: str | None) -> Flow[None]:
        """Submit a job and emit its events."""
        job = yield from self.submit(body, key)
        yield from self.events(job["id"], -1)

    def result(self, job_id: str) -> Flow[Json]:
        """Return the job once it has ended, whether completed, failed or cancelled."""
        yield from self._follow(Send("GET", f"/v1/jobs/{segment(job_id)}/events"), EndStreamReader())
        return (yield from self.job(job_id))

    def chat(self, body: Body, key: str | None, reader: ChatStreamReader) -> Flow[None]:
        """Emit the items that `reader` makes from the chunks of a chat completion."""
        return self._follow(
            Send("POST", "/v1/chat/completions/stream", _idempotency_header(key), body=body), reader
        )

    def complete(self, body: Body, key: str | None) -> Flow[Json]:
        """Return a whole chat completion. It is streamed, so that keepalives arrive even during a wait of hours."""
        reader = CompletionStreamReader()
        yield from self.chat({**body, "stream_options": {"include_usage": True}}, key, reader)
        return reader.completion()

    def abandon(self, reader: ChatStreamReader) -> Flow[None]:
        """Cancel an answer whose reader has left. If no replica responds, the request's own limits end it."""
        if reader.job_id is not None:
            try:
                yield Send("DELETE", f"{self._replicas.current}/v1/jobs/{segment(reader.job_id)}")
            except Unavailable:
                return

    def _json(self, request: Send) -> Flow[Json]:
        reply = yield from self._send(request, self._new_budget())
        return json_object(reply.content)

    def _send(self, request: Send, budget: RetryBudget) -> Flow[Reply]:
        """Return the reply of the first replica that serves the request. Raises the server's HeadraceError."""
        while True:
            base = self._replicas.current
            try:
                reply: Reply = yield replace(request, url=base + request.url)
                if reply.status < 400:
                    return reply
                raise error_from_reply(reply, base)
            except HeadraceError as error:
                if isinstance(error, Unavailable | QueueFull):
                    self._replicas.skip(base)
                wait = budget.pause_after(error)
            yield Pause(wait)

    def _follow(self, request: Send, reader: StreamReader) -> Flow[None]:
        """Emit the items of a stream until its end, across lost connections."""
        budget = self._new_budget()
        while True:
            headers = dict(request.headers) | ({} if reader.last_id is None else {"last-event-id": reader.last_id})
            reply = yield from self._send(replace(request, headers=headers, stream=True), budget)
            if reply.status == NO_CONTENT:
                return
            base = self._replicas.current
            try:
                yield from _read_items(reader, budget)
                return
            except HeadraceError as error:
                self._replicas.skip(base)
                wait = budget.pause_after(error)
            yield Pause(wait)

    def _new_budget(self) -> RetryBudget:
        return RetryBudget(self._retry_seconds, len(self._replicas), self._clock)


def _read_items(reader: StreamReader, budget: RetryBudget) -> Flow[None]:
    """Emit the items of one connection. Raises Unavailable if it ends before the stream does."""
    parser, event = Parser(), []
    while chunk := (yield Read()):
        for frame in parser.feed(chunk):
            if frame.comment is not None:
                if frame.comment == KEEPALIVE:
                    budget.reset()
                continue
            reader.check(frame, parser.retry)
            event.append(frame)
            if frame.id is None:
                continue  # the id comes with the last frame of an event
            budget.reset()
            reader.last_id = frame.id
            for item in reader.take(event):
                yield Emit(item)
            if reader.ended:
                return
            event = []
    raise Unavailable("the stream ended before the answer did", retry_after=parser.retry)


def segment(name: str) -> str:
    """Return a name as one segment of a path: `..` or a slash in it must not lead to another path.

    Raises ConfigError for an empty one: without it, the path is that of all items.
    """
    if not name:
        raise ConfigError("an id or a name must not be empty")
    return quote(name, safe="", errors="surrogateescape") if name.strip(".") else name.replace(".", "%2E")


def error_from_reply(reply: Reply, base: str) -> HeadraceError:
    """Return the error of a reply with an error status. A reply of a proxy becomes Unavailable."""
    header = reply.headers.get("retry-after", "")
    retry_after = None if (seconds := whole(header)) is None else float(seconds)
    try:
        body = json_object(reply.content)
    except HeadraceError:
        if reply.status in PROXY_STATUSES:
            return Unavailable(f"{base} responded with status {reply.status}", retry_after=retry_after)
        raise
    problem = body.get("error", body)
    if isinstance(problem, str):  # of KServe's protocol
        problem = {"message": problem}
    return error_from_body(problem if isinstance(problem, dict) else {}, retry_after)


def _idempotency_header(key: str | None) -> dict[str, str]:
    """Return the header with one idempotency key for all attempts of a call."""
    return {"idempotency-key": key or secrets.token_hex(16)}
