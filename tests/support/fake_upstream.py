"""OpenAI-compatible server in a thread, whose answers follow a rule, or are the bytes that a test sends.

Word `p` of choice `c` of a prompt is known in advance (`word`), so every gap or repetition is visible.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from shared.runtime.sockets import free_port
from tests.support.waiting import LIMIT_S

HOST = "127.0.0.1"
MODEL = "fake"
CONTEXT_CHARS = 4096
WRITTEN = re.compile(r"(?: w\d+)*$")
PACE = re.compile(r"\[pace (\d+)\]")  # at most one word of each choice in so many milliseconds
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"


def word(prompt: str, choice: int, position: int) -> str:
    return f" w{(zlib.crc32(prompt.encode()) + choice * 7_919 + position * 104_729) % 1000}"


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def text_chunk(text: str, finish_reason: str | None = None, choice: int = 0) -> bytes:
    """Return a chunk of a completion."""
    return event({"choices": [{"index": choice, "text": text, "finish_reason": finish_reason}]})


def chat_chunk(delta: dict[str, Any], finish_reason: str | None = None, choice: int = 0) -> bytes:
    return event({"choices": [{"index": choice, "delta": delta, "finish_reason": finish_reason}]})


def response(status: str, body: bytes, *headers: str) -> bytes:
    """Return a response with a length."""
    head = "\r\n".join((f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers))
    return head.encode() + b"\r\n\r\n" + body


def json_response(status: str, body: Any, *headers: str) -> bytes:
    return response(status, json.dumps(body).encode(), "content-type: application/json", *headers)


@dataclass
class Exchange:
    """One request, with its number from 0. `gone` is set when the client closes the connection."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_part(self, data: bytes) -> None:
        """Send a part of a chunked response."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))


Respond = Callable[[Exchange], Awaitable[None]]


class FakeUpstream:
    """Server under the control of a test. Use `serving`.

    Attributes:
        respond: answers the requests for answers; by default, they follow the rule.
        cut_at: an answer that reaches this position is cut off, once for each entry.
        owned_by, models, listing: what GET /models returns, if the default is not wanted.
        gate: without it, answers stop after the first word of each choice.
        exchanges: all requests for answers.
    """

    def __init__(self) -> None:
        self.port = free_port(HOST)
        self.gate = threading.Event()
        self.reset()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Return to the state of a new server, for another test."""
        self.respond: Respond = self.follow_rule
        self.owned_by = "other"
        self.models: list[dict[str, Any]] | None = None
        self.listing: bytes | None = None
        self.cut_at: list[int] = []
        self.gate.set()
        self.exchanges: list[Exchange] = []

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def listen(self) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._handle, HOST, self.port)

        asyncio.run_coroutine_threadsafe(start(), self._loop).result(LIMIT_S)

    def hang_up(self) -> None:
        """Stop listening, and cut all connections, as a killed server does."""

        async def stop() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for writer in self._connections:
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(LIMIT_S)

    @staticmethod
    def text(prompt: str | tuple[int, ...] | None, words: int, choice: int = 0) -> str:
        """Return the text of an answer by the rule."""
        return "".join(word(str(prompt), choice, position) for position in range(words))

    def await_gone(self, number: int) -> None:
        """Wait until the client has closed the connection of a request."""
        asyncio.run_coroutine_threadsafe(self.exchanges[number].gone.wait(), self._loop).result(LIMIT_S)

    def close(self) -> None:
        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.hang_up()
        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(LIMIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if first.startswith("GET"):
                    writer.write(self._listed(first.split()[1]))
                    break
                exchange = Exchange(len(self.exchanges), first.split()[1], headers, json.loads(body), writer)
                self.exchanges.append(exchange)
                watching = asyncio.create_task(self._watch(reader, exchange))
                await self.respond(exchange)
                await writer.drain()
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
                break
        self._connections.discard(writer)
        writer.close()

    @staticmethod
    async def _watch(reader: asyncio.StreamReader, exchange: Exchange) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
        exchange.gone.set()

    def _listed(self, path: str) -> bytes:
        if urlsplit(path).path != "/v1/models":  # a client of a proxy sends the whole URL
            return json_response("404 Not Found", {})
        if self.listing is not None:
            return self.listing
        models = [{"id": MODEL, "object": "model", "owned_by": self.owned_by}]
        return json_response("200 OK", {"object": "list", "data": models if self.models is None else self.models})

    async def follow_rule(self, exchange: Exchange) -> None:
        """Answer by the rule, or continue an answer that the request begins."""
        body = exchange.body
        if exchange.chat:
            *turns, last = [message["content"] for message in body["messages"]]
            continued = bool(body.get("continue_final_message"))
            prompt, written = ("\n".join(turns), last) if continued else ("\n".join([*turns, last]), "")
        else:
            written = WRITTEN.search(body["prompt"]).group()  # type: ignore[union-attr]  # it matches ""
            prompt = body["prompt"].removesuffix(written)
        if len(prompt) > CONTEXT_CHARS:
            error = {"message": "the prompt is too long", "code": "context_length_exceeded"}
            await exchange.send(json_response("400 Bad Request", {"error": error}))
            return
        start, pace = len(written.split()), PACE.search(prompt)
        pause = int(pace[1]) / 1000 if pace else 0.0
        await exchange.send(HEAD)
        total = 0
        for position in range(start, start + body.get("max_tokens", 16)):
            if self.cut_at and position == self.cut_at[0]:
                del self.cut_at[0]
                return
            for choice in range(body.get("n", 1)):
                total += await self._send_word(exchange, prompt, choice, position, start)
            await asyncio.sleep(pause)
            while position > start and not self.gate.is_set() and not exchange.gone.is_set():
                await asyncio.sleep(0.005)
        usage = {"prompt_tokens": len(prompt.split()) + start, "completion_tokens": total}
        await exchange.send_part(event({"choices": [], "usage": usage}))
        await exchange.send_part(DONE)
        await exchange.send_part(b"")

    async def _send_word(self, exchange: Exchange, prompt: str, choice: int, position: int, start: int) -> int:
        """Send a word of a choice, unless a stop string has ended it. Return the number of its tokens."""
        body = exchange.body
        text = word(prompt, choice, position)
        earlier = [word(prompt, choice, p) for p in range(start, position)]
        if any(stop in each for stop in body.get("stop", ()) for each in earlier):
            return 0
        last = position == start + body.get("max_tokens", 16) - 1
        stopped = next((stop for stop in body.get("stop", ()) if stop in text), None)
        finish = "stop" if stopped is not None else "length" if last else None
        text = text if stopped is None else text[: text.index(stopped)]
        chunk = chat_chunk({"content": text}, finish, choice) if exchange.chat else text_chunk(text, finish, choice)
        await exchange.send_part(chunk)
        return 1


@contextmanager
def serving() -> Iterator[FakeUpstream]:
    server = FakeUpstream()
    server.listen()
    try:
        yield server
    finally:
        server.gate.set()
        server.close()


def sending(*data: bytes) -> Respond:
    """Return a handler that sends these bytes and closes the connection."""

    async def respond(exchange: Exchange) -> None:
        for part in data:
            await exchange.send(part)

    return respond


def streaming(*events: bytes) -> Respond:
    """Return a handler that sends these events as a complete response."""
    return sending(HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*events, b"")))
