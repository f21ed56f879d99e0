"""Chaos case of OpenAI's responses: while workers and replicas die, resumed streams have the same bytes."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from typing import Any

import pytest

from tests.chaos.scale import Scale
from tests.support.cluster import Cluster
from tests.support.raw_http import exchange
from tests.support.stream_client import PAUSE_S, scripted, until

pytestmark = pytest.mark.slow

KEEPALIVE = b": keepalive\n"
NUMBER = re.compile(rb"^id: (\d+)$", re.MULTILINE)


class Stream:
    """Background response, whose stream is resumed at the next replica after each broken connection."""

    def __init__(self, urls: list[str], prompt: str, tokens: int) -> None:
        self._urls = itertools.cycle(urls)
        self._prompt = prompt
        self._tokens = tokens
        self._id = ""
        self.received = b""
        self.number = -1  # of the last complete event
        self.connections = 0

    async def run(self) -> None:
        body = {"model": "scripted", "input": self._prompt, "max_output_tokens": self._tokens}
        while not self._id:
            self._id = await self._try("POST", "/v1/responses", {**body, "background": True})
        while b"event: response.incomplete\n" not in self.received:
            await self._try("GET", f"/v1/responses/{self._id}?stream=true&starting_after={self.number}")

    async def _try(self, method: str, path: str, body: Any = None) -> str:
        """Use one connection: create the response and return its id, or read events until it breaks."""
        self.connections += 1
        rest = b""
        try:
            async with exchange(next(self._urls), method, path, body=body) as response:
                assert response.status == 200
                if body is not None:
                    return str((await response.json())["id"])
                async for chunk in response.chunks():
                    whole, mark, rest = (rest + chunk).rpartition(b"\n\n")
                    self.received += (whole + mark).replace(KEEPALIVE, b"")
                    self.number = int([str(self.number).encode(), *NUMBER.findall(whole)][-1])
        except OSError:
            await asyncio.sleep(PAUSE_S)
        return ""

    async def verify(self, urls: list[str]) -> None:
        """Check that every replica sends the bytes that were read in pieces, and that the text follows the rule."""
        for url in urls:
            async with exchange(url, "GET", f"/v1/responses/{self._id}?stream=true") as response:
                whole = b"".join([chunk async for chunk in response.chunks()]).replace(KEEPALIVE, b"")
            assert whole == self.received
        async with exchange(urls[0], "GET", f"/v1/responses/{self._id}") as response:
            [item] = (await response.json())["output"]
        assert item["content"][0]["text"] == scripted(f"user:{self._prompt}\n", 0, self._tokens)


@pytest.mark.case("responses", "workers and replicas kill -9 mid-response, streams taken up by number")
async def test_responses_outlive_both_ends(
    fleet: Cluster, scale: Scale, figures: dict[str, Any], dice: random.Random
) -> None:
    """Given background responses, if workers and replicas are killed, each stream has the same bytes."""
    kills, tokens = scale(2, 100), scale(60, 600)
    streams = [Stream(fleet.urls, f"{number} [pace 50]", tokens) for number in range(scale(8, 64))]
    running = asyncio.gather(*[stream.run() for stream in streams])
    for nodes in [fleet.workers, fleet.apis] * kills:
        await _progress(streams, running)
        victim = dice.choice(nodes)
        victim.kill()
        await victim.start()
    await running
    await asyncio.gather(*[stream.verify(fleet.urls) for stream in streams])
    figures |= {"kills": 2 * kills, "responses": len(streams), "events": sum(s.number + 1 for s in streams)}
    figures |= {"resumed": sum(stream.connections - 2 for stream in streams)}
    assert all(stream.number == tokens + 8 for stream in streams)  # nine events in addition to the deltas


async def _progress(streams: list[Stream], running: asyncio.Future[Any]) -> None:
    """Wait until there is another event for each stream on average, or one has failed."""
    enough = sum(stream.number + 1 for stream in streams)
    await until(lambda: running.done() or sum(stream.number for stream in streams) > enough, "the streams continue")
