"""Workers of one model with different runtimes or fingerprints: the later one is refused."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from shared.backend import Backend
from shared.errors import ConfigError
from shared.locks.locks import Locks
from shared.models.worker_registry import WorkerInfo
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings
from shared.token_log.memory import MemoryLocks
from tests.support.fakes import MODEL
from tests.support.loop_clock import LoopClock, stopped_clock
from tests.support.node import Node
from workers.lease_keeper import LeaseKeeper
from workers.model_claim import ModelClaim
from workers.scripted_engine import ScriptedEngine
from workers.sole_request import SoleRequestRecord

LEASE_S = 3.0


@pytest.fixture
async def clock() -> AsyncIterator[LoopClock]:
    with stopped_clock() as stopped:
        yield stopped


@pytest.fixture
def locks(clock: LoopClock) -> Locks:
    return MemoryLocks(lambda: clock.now)


def claim(locks: Locks, fingerprint: str = "fp_1", **fields: Any) -> ModelClaim:
    info = WorkerInfo(
        **{"id": "w", "pid": 1, "model": MODEL, "state": "ready", "fingerprint": fingerprint, **fields}
    )
    return ModelClaim(locks, info, LEASE_S)


async def held(holder: ModelClaim, waiting: asyncio.Task[None], clock: LoopClock) -> None:
    """Let time pass until a claim that waits has ended, while the holder renews its own."""
    while not waiting.done():
        await clock.advance(LEASE_S / 10)
        await holder.renew()


@pytest.mark.parametrize("other", [{"fingerprint": "fp_2"}, {"runtime": "vllm"}])
async def test_a_worker_that_disagrees_is_refused(clock: LoopClock, locks: Locks, other: dict[str, str]) -> None:
    """It waits for a claim that might expire, for little more than a lease; the error names both sides."""
    holder = claim(locks)
    await holder.acquire()
    waiting = asyncio.create_task(claim(locks, **other).acquire())
    await held(holder, waiting, clock)

    with pytest.raises(ConfigError) as refused:
        await waiting
    assert clock.elapsed == pytest.approx(LEASE_S * 1.2, rel=0.2)
    assert refused.value.param == "mixed_workers"
    theirs, own = "native fp_1", f"{other.get('runtime', 'native')} {other.get('fingerprint', 'fp_1')}"
    assert f"have runtime and fingerprint {theirs}, this one has {own}:" in refused.value.message


async def test_a_worker_with_another_watermark_key_is_refused(
    clock: LoopClock, locks: Locks, settings: Settings
) -> None:
    """The claim holds too little of the key to find it; workers that set no marks may have any key."""

    def keyed(key: str, **fields: Any) -> ModelClaim:
        chosen = settings.model_copy(update={"watermark_key": SecretStr(key), "lease": LEASE_S})
        info = WorkerInfo(
            **{"id": "w", "pid": 1, "model": MODEL, "state": "ready", "fingerprint": "fp_1", **fields}
        )
        return ModelClaim.from_settings(locks, info, chosen)

    holder = keyed("71234567")
    await holder.acquire()
    await keyed("71234567").acquire()
    kept = await locks.acquire(f"model-claim:{MODEL}", b"", LEASE_S)
    assert re.fullmatch(rb"native fp_1 [0-9a-f]{4}", kept)
    waiting = asyncio.create_task(keyed("81234567").acquire())
    await held(holder, waiting, clock)
    with pytest.raises(ConfigError, match="have another watermark_key") as refused:
        await waiting
    assert refused.value.param == "watermark_key"
    for other, fields in (("embedder", {"task": "embed"}), ("proxied", {"runtime": "upstream"})):
        await keyed("1", model=other, **fields).acquire()
        await keyed("2", model=other, **fields).acquire()


async def test_workers_that_agree_share_the_claim(clock: LoopClock, locks: Locks) -> None:
    """Models are claimed one by one, and one worker keeps the claim of all."""
    first, second = claim(locks), claim(locks)
    await first.acquire()
    await second.acquire()
    await claim(locks, "fp_2", model="another").acquire()
    waiting = asyncio.create_task(claim(locks, "fp_2").acquire())
    await held(second, waiting, clock)
    assert isinstance(waiting.exception(), ConfigError)


async def test_the_claim_of_lost_workers_expires(clock: LoopClock, locks: Locks) -> None:
    await claim(locks).acquire()
    waiting = asyncio.create_task(claim(locks, "fp_2").acquire())
    while not waiting.done():
        await clock.advance(LEASE_S / 10)
    await waiting
    assert clock.elapsed <= LEASE_S * 1.2


async def test_one_of_two_that_start_at_once_is_the_first(backend: Backend) -> None:
    claims = [claim(backend.locks, name) for name in ("fp_1", "fp_2")]
    waiting = [asyncio.create_task(each.acquire()) for each in claims]
    [first], _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await first
    assert sum(task.done() for task in waiting) == 1
    for task in waiting:
        task.cancel()


async def test_a_draining_worker_gives_up_the_claim(clock: LoopClock, locks: Locks, settings: Settings) -> None:
    """Its heartbeats renew the claim until it drains; then it expires, though the worker still runs."""
    backend, own, other = Backend.memory(settings), claim(locks), claim(locks, "fp_2")
    info = WorkerInfo(id="w", pid=1, model=MODEL, state="ready")
    keeper = LeaseKeeper(
        backend,
        LEASE_S,
        lambda: info,
        list,
        lambda request: None,
        sole_request=SoleRequestRecord(backend.token_log, list),
        claim=own,
    )
    for state, taken in (("ready", False), ("draining", True)):
        info = msgspec.structs.replace(info, state=state)
        await clock.advance(LEASE_S / 2)
        await keeper.beat()
        await clock.advance(LEASE_S * 0.6)
        await other.renew()
        waiting = asyncio.create_task(other.acquire())
        await clock.advance(0)
        assert waiting.done() == taken
        waiting.cancel()


@asynccontextmanager
async def other_workers(backend: Backend) -> AsyncIterator[None]:
    """Hold the claim of the model "scripted" as workers of another runtime do."""
    holder = claim(backend.locks, "fp_other", model="scripted", runtime="vllm")

    async def hold() -> None:
        while True:
            await holder.renew()
            await asyncio.sleep(LEASE_S / 30)

    await holder.acquire()
    holding = asyncio.create_task(hold())
    yield
    holding.cancel()


@pytest.mark.slow
async def test_a_worker_process_refuses_to_start(backend: Backend, valkey: EmbeddedServer, tmp_path: Path) -> None:
    """Exit status 2, at which a launcher gives up; with mixed_workers = allow, it starts."""
    common = {"REDIS_URL": valkey.url, "LEASE": str(LEASE_S), "LOG_FORMAT": "json"}
    environment = {f"HEADRACE_{name}": value for name, value in common.items()}
    command = ["worker", "--model", "scripted"]
    node = Node("worker", sys.executable, command, environment, "worker_ready", tmp_path / "log")
    async with other_workers(backend):
        node.spawn()
        assert await node.ended() == 2
        assert "vllm fp_other" in node.tail() and ScriptedEngine().fingerprint in node.tail()
        node.environment = {**environment, "HEADRACE_MIXED_WORKERS": "allow"}
        node.spawn()
        await node.logged("worker_ready")
        assert await node.stop() == 0
