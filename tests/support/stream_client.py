"""Patient client of the native API on all replicas, which checks the answers while it reads them.

Only this module of the suite depends on the API and on the rule of the scripted answers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.raw_http import Frame, exchange
from tests.support.waiting import LIMIT_S
from workers.scripted_engine import expected, text_of

PATIENCE_S = LIMIT_S  # without progress, a client gives up
PAUSE_S = 0.05  # between tries
SILENCE_S = 5.0  # without a byte, a client considers its connection dead
ENDINGS = ("done", "error", "cancelled")


class Violated(AssertionError):
    """The server broke the contract: a gap, a repeated token, a lost answer, a second end."""


def scripted(prompt: str, choice: int, tokens: int) -> str:
    """Return the text that the scripted engine generates."""
    ids = [ord(character) for character in prompt]
    return "".join(text_of(expected(ids, choice, position)) for position in range(tokens))


@dataclass(eq=False)
class Answer:
    """One job and what was read of its answer. Times are time.monotonic's."""

    job: str
    body: dict[str, Any]
    submitted: float
    texts: list[str] = field(default_factory=list)
    seq: int = -1
    end: str | None = None
    data: dict[str, Any] = field(default_factory=dict)  # of the last event
    arrivals: list[float] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.texts = [""] * self.body.get("n", 1)

    def take(self, frame: Frame) -> None:
        """Take one event. Raises Violated for a gap, a repeated token, or an event after the end."""
        if frame.event == "interrupted":
            return
        data = json.loads(frame.data)
        if self.end is not None:
            raise Violated(f"{self.job}: {frame.event} after {self.end}")
        if data["seq"] != self.seq + 1:
            kind = "gap" if data["seq"] > self.seq + 1 else "repeat"
            raise Violated(f"{self.job}: {kind}: seq {data['seq']} after {self.seq}")
        if frame.event == "token":
            self.arrivals.append(time.monotonic())
            for token in data["tokens"]:
                self.texts[token["choice"]] += token["text"]
            self.seq += len(data["tokens"])
        else:
            assert frame.event in ENDINGS, frame
            self.seq += 1
            self.end, self.data = frame.event, data
        if int(frame.id) != self.seq:
            raise Violated(f"{self.job}: id {frame.id} at seq {self.seq}")

    @property
    def stalls(self) -> list[float]:
        """Seconds between consecutive events."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]

    @property
    def first_token(self) -> float:
        """Seconds from the submit to the first token."""
        return self.arrivals[0] - self.submitted

    def verify(self) -> None:
        """Raise Violated unless the answer is complete, with the text of the rule and the usage of its tokens."""
        if self.end != "done":
            raise Violated(f"{self.job}: ended with {self.end}: {self.data.get('error')}")
        for choice, text in enumerate(self.texts):
            if text != scripted(self.body["prompt"], choice, self.body["max_tokens"]):
                raise Violated(f"{self.job}: the text of choice {choice} does not follow the rule")
        if self.data["usage"]["completion_tokens"] != self.seq:
            raise Violated(f"{self.job}: {self.seq} tokens, but the usage is {self.data['usage']}")


class Client:
    """Client of all replicas in turn, which continues with the next if one does not answer.

    Args:
        urls: addresses of the replicas.
        model: name of the model in requests.
    """

    def __init__(self, urls: Sequence[str], model: str = "scripted") -> None:
        self.urls = list(urls)
        self.model = model
        self._turns = itertools.count()
        self.refusals = 0  # 429s, 503s and broken connections after which a submit was retried

    def body(self, prompt: str, tokens: int, **fields: Any) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, "max_tokens": tokens, **fields}

    def url(self) -> str:
        return self.urls[next(self._turns) % len(self.urls)]

    async def post(
        self, body: dict[str, Any], url: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Submit once, and return status and body. Raises OSError."""
        async with exchange(url or self.url(), "POST", "/v1/jobs", body=body, headers=headers) as response:
            return response.status, await response.json()

    async def submit(self, prompt: str, tokens: int, key: str | None = None, **fields: Any) -> Answer:
        """Submit until a replica accepts, with one key. Raises Violated for a refusal that no fault explains."""
        body = self.body(prompt, tokens, **fields)
        headers = {"idempotency-key": key or secrets.token_hex(16)}
        begin = time.monotonic()
        while (now := time.monotonic()) - begin < PATIENCE_S:
            try:
                status, said = await self.post(body, headers=headers)
            except OSError:
                status, said = 0, {}
            if status == 202:
                return Answer(said["id"], body, now)
            if status not in (0, 429, 503):
                raise Violated(f"a submit got {status}: {said}")
            self.refusals += 1
            await asyncio.sleep(PAUSE_S)
        raise Violated(f"no replica accepted a job for {PATIENCE_S} s; the last said {status}: {said}")

    async def follow(self, answer: Answer, url: str | None = None) -> Answer:
        """Read to the end; resume on the next replica after every broken connection. Raises Violated."""
        begin = time.monotonic()
        while answer.end is None:
            try:
                await self._read(answer, url or self.url())
            except OSError:
                await asyncio.sleep(PAUSE_S)
            last = answer.arrivals[-1] if answer.arrivals else begin
            if answer.end is None and time.monotonic() - last > PATIENCE_S:
                raise Violated(f"{answer.job}: no event for {PATIENCE_S} s after seq {answer.seq}")
        return answer

    async def _read(self, answer: Answer, url: str) -> None:
        path, resume = f"/v1/jobs/{answer.job}/events", {"last-event-id": str(answer.seq)}
        async with exchange(url, "GET", path, headers=resume, silence=SILENCE_S) as response:
            if response.status == 503:
                raise ConnectionError(await response.json())
            if response.status != 200:
                raise Violated(f"{answer.job}: reading after {answer.seq} gives {response.status}")
            answer.connections += 1
            async for frame in response.frames():
                answer.take(frame)

    async def run(self, prompt: str, tokens: int, **fields: Any) -> Answer:
        """Submit, read to the end, verify."""
        answer = await self.follow(await self.submit(prompt, tokens, **fields))
        answer.verify()
        return answer

    async def replay(self, answer: Answer, url: str) -> Answer:
        """Read the whole answer again from one replica, and check that it is the same."""
        again = await self.follow(Answer(answer.job, answer.body, time.monotonic()), url)
        if (again.texts, again.end, again.data) != (answer.texts, answer.end, answer.data):
            raise Violated(f"{answer.job}: the second reading differs from the first")
        return again

    async def models(self) -> list[str]:
        """Return the models that one replica lists."""
        async with exchange(self.url(), "GET", "/v1/models") as response:
            return [model["id"] for model in (await response.json())["data"]]

    async def dead_letters(self) -> list[dict[str, Any]]:
        """Return the dead letters that one replica lists."""
        async with exchange(self.url(), "GET", "/v1/dead-letters") as response:
            return (await response.json())["data"]

    async def job(self, job_id: str, url: str | None = None) -> dict[str, Any] | None:
        """Return a job; None if it is unknown. Retries after 503."""
        begin = time.monotonic()
        while time.monotonic() - begin < PATIENCE_S:
            try:
                async with exchange(url or self.url(), "GET", f"/v1/jobs/{job_id}") as response:
                    if response.status in (200, 404):
                        return await response.json() if response.status == 200 else None
            except OSError:
                pass
            await asyncio.sleep(PAUSE_S)
        raise Violated(f"{job_id}: no replica answered for {PATIENCE_S} s")


async def until(condition: Callable[[], bool], what: str, limit: float = PATIENCE_S) -> float:
    """Wait for a condition, and return the seconds that it took. Raises Violated after `limit` seconds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > limit:
            raise Violated(f"not within {limit} s: {what}")
        await asyncio.sleep(0.01)
    return time.monotonic() - begin
