"""`scripts/test-drain`: a worker that must leave hands its running answers over, many times in a row.

Two workers compute 64 streams, as `headrace worker` processes behind an API. One of them gets an order, signals or
the notice of a cloud. Every stream must end with all its tokens, each once, and with the text that it has without
a departure.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cluster import WORKER_READY, Cluster, running
from tests.support.departures import handed_over, order_to_leave
from tests.support.metadata_service import MetadataService
from tests.support.node import Node
from tests.support.stream_client import Answer, Client, Violated, scripted, until

LIMIT_GONE_S = 2.0
GRACE_S = 600  # so that a worker which waits for its answers would be noticed
SEATS = 32
START_LIMIT_S = 300
ENDED = (0, -signal.SIGTERM)  # the second signal may meet a process that has handed over and is ending
CHAT = 'backend: "headrace" parameters { key: "model" value { string_value: "scripted" } }'


@dataclass(frozen=True)
class Kind:
    """A way to leave, and the model that runs.

    Attributes:
        cloud: whose notice it is; empty for none.
        signals: the worker gets SIGTERM twice; otherwise, without a cloud, an order.
    """

    cloud: str = ""
    signals: bool = False
    model: str = "scripted"
    repository: bool = False

    @property
    def worker_ready(self) -> str:
        return "model_loaded" if self.repository else WORKER_READY


KINDS = {
    "order": Kind(),
    "signals": Kind(signals=True),
    "aws": Kind("aws"),
    "gcp": Kind("gcp"),
    "azure": Kind("azure"),
    "repository": Kind(model="chat", repository=True),
    "smollm2": Kind(model="smollm2"),
    "smollm2-aws": Kind("aws", model="smollm2"),
}


@dataclass
class Tally:
    """Figures of all rounds of a kind. Times are in seconds.

    Attributes:
        gone: from the order, the signals or the answer with the notice until the process was gone.
        stalls: the longest pause between two events of each stream.
    """

    streams: int = 0
    lost: int = 0
    gaps: int = 0
    different: int = 0
    handed_over: int = 0
    failed_exits: int = 0
    gone: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)

    def count(self, found: Answer | BaseException, expected: str) -> None:
        """Count one stream."""
        self.streams += 1
        if isinstance(found, Answer):
            self.lost += found.end != "done" or found.seq != found.body["max_tokens"]
            self.different += found.texts[0] != expected
            self.stalls.append(max(found.stalls, default=0.0))
        elif isinstance(found, Violated) and any(f": {kind}: " in str(found) for kind in ("gap", "repeat")):
            self.gaps += 1
        else:
            self.lost += 1

    @property
    def broken(self) -> int:
        return self.lost + self.gaps + self.different + self.failed_exits

    def __str__(self) -> str:
        late = sum(seconds > LIMIT_GONE_S for seconds in self.gone)
        parts = (
            f"{len(self.gone)} departures, {self.streams} streams",
            f"{self.lost} lost, {self.gaps} with gaps or repeats, {self.different} with another text",
            f"{self.failed_exits} processes failed",
            f"{self.handed_over} answers handed over, longest pause {max(self.stalls, default=0.0):.2f} s",
            f"gone after {statistics.median(self.gone):.2f} s (median), {max(self.gone):.2f} s (most)",
            f"{late} times later than {LIMIT_GONE_S:g} s",
        )
        return "; ".join(parts)


class Drill:
    """Rounds of one kind on a running cluster, whose last worker leaves and is started again."""

    def __init__(self, kind: Kind, cluster: Cluster, service: MetadataService, tokens: int) -> None:
        self._kind = kind
        self._cluster = cluster
        self._service = service
        self._tokens = tokens
        self._client = Client(cluster.urls, kind.model)
        self._texts: dict[str, str] = {}  # by prompt, of answers without a departure
        self.tally = Tally()

    @property
    def leaving(self) -> Node:
        return self._cluster.workers[-1]

    async def learn(self, prompts: Sequence[str]) -> None:
        """Remember the texts of the prompts without a departure."""
        if self._kind.model != "smollm2":
            self._texts = {prompt: scripted(prompt, 0, self._tokens) for prompt in prompts}
            return
        begun = [await self._begin(prompt) for prompt in prompts]
        answers = await asyncio.gather(*map(self._client.follow, begun))
        self._texts = {answer.body["prompt"]: answer.texts[0] for answer in answers}

    async def round(self, prompts: Sequence[str]) -> None:
        """Let the worker leave while it computes, and start it again."""
        answers = [await self._begin(prompt) for prompt in prompts]
        tasks = [asyncio.create_task(self._client.follow(answer)) for answer in answers]
        await until(lambda: all(answer.seq >= 0 or answer.end for answer in answers), "a token of each stream")
        self.tally.gone.append(await self._leave())
        for prompt, found in zip(prompts, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            self.tally.count(found, self._texts[prompt])
        self._service.withdraw()
        await self.leaving.start()
        self.tally.handed_over = handed_over(self._cluster.folder / f"{self.leaving.name}.log")

    async def _begin(self, prompt: str) -> Answer:
        return await self._client.submit(prompt, self._tokens, temperature=0, ignore_eos=True)

    async def _leave(self) -> float:
        """Return the seconds until the process is gone."""
        began = time.monotonic()
        if self._kind.cloud:
            self._service.announce()
        elif self._kind.signals:
            stopping = asyncio.create_task(self.leaving.stop())
            await asyncio.sleep(0.2)  # a worker that drains already
            await self.leaving.stop()
            await stopping
        else:
            await order_to_leave(self.leaving, self._cluster.store.url)
        self.tally.failed_exits += await self.leaving.ended() not in ENDED
        return time.monotonic() - (self._service.told or began)


def worker_environment(kind: Kind, folder: Path) -> dict[str, str]:
    """Return the environment of both workers; those of a repository have the model `chat`."""
    if not kind.repository:
        return {}
    (folder / "chat").mkdir(parents=True)
    (folder / "chat" / "config.pbtxt").write_text(CHAT, encoding="utf-8")
    return {"HEADRACE_MODEL": "none", "HEADRACE_MODEL_REPOSITORY": str(folder), "HEADRACE_MODEL_MEMORY": "8GiB"}


async def drill(kind: Kind, folder: Path, options: argparse.Namespace) -> Tally:
    settings: dict[str, Any] = {"grace": GRACE_S, "max_num_seqs": SEATS, "lease": 3}
    settings["model"] = "scripted" if kind.repository else kind.model
    starting: dict[str, Any] = {"worker_ready": kind.worker_ready}
    settings |= {"environment": {"worker": worker_environment(kind, folder / "repository")}, **starting}
    async with (
        MetadataService() as service,
        running(folder, apis=1, workers=1, start_limit=START_LIMIT_S, **settings) as cluster,
    ):
        [staying] = cluster.workers
        own = {"HEADRACE_SPOT_NOTICES": kind.cloud or "off", "HEADRACE_SPOT_NOTICES_URL": service.url}
        await cluster.add("worker", {**staying.environment, **own}, limit=START_LIMIT_S, **starting).start()
        runs = Drill(kind, cluster, service, options.tokens)
        prompts = [f"[pace 50] stream {number}" for number in range(options.streams)]
        await runs.learn(prompts)
        for _ in range(options.times):
            await runs.round(prompts)
        return runs.tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test-drain", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; default: all")
    parser.add_argument("--times", type=int, default=20, help="departures of each kind (20)")
    parser.add_argument("--streams", type=int, default=2 * SEATS, help=f"streams at a time ({2 * SEATS})")
    parser.add_argument("--tokens", type=int, default=120, help="tokens of each stream, one every 50 ms (120)")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.kinds or KINDS:
            tally = asyncio.run(drill(KINDS[name], Path(folder) / name, options))
            print(f"{name}: {tally}", flush=True)
            broken += tally.broken
    return min(1, broken)


if __name__ == "__main__":
    sys.exit(main())
