"""Adapters in a worker's memory: who stays, who leaves, and who waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.protocol import AdapterRef
from tests.support.loop_clock import stopped_clock, turns
from workers.lora import residents
from workers.lora.residents import Residents


class Loader:
    """Loads adapters that are their names, except those that begin with "broken"."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    async def __call__(self, ref: AdapterRef) -> Any:
        await asyncio.sleep(0)
        if ref.name.startswith("broken"):
            raise ConfigError("broken")
        self.loaded.append(ref.name)
        return ref.name


def ref(name: str) -> AdapterRef:
    return AdapterRef(name, name, name)


async def test_the_least_recently_used_leaves_unless_a_run_has_it() -> None:
    loader = Loader()
    kept = Residents(loader, 2)
    for run, name in (("1", "a"), ("2", "b"), ("3", "a")):
        assert await kept.acquire(run, ref(name), 0) == name
    for run in "123":
        kept.release(run)
    await kept.acquire("4", ref("a"), 0)
    await kept.acquire("5", ref("c"), 0)  # b leaves
    kept.release("4")
    await kept.acquire("6", ref("b"), 0)  # a leaves, though c was loaded before: a run has c
    assert loader.loaded == ["a", "b", "c", "b"]
    assert (kept.num_loaded, kept.running(), kept.waiting()) == (2, {"b", "c"}, set())
    assert kept.events == {"loaded": 4, "evicted": 2}


async def test_runs_wait_for_room_the_most_urgent_first() -> None:
    kept = Residents(Loader(), 1)
    await kept.acquire("1", ref("a"), 1)
    order: list[str] = []

    async def run(name: str, rank: int) -> None:
        await kept.acquire(name, ref(name), rank)
        order.append(name)
        kept.release(name)

    tasks = [asyncio.create_task(run(*each)) for each in (("b", 2), ("c", 1), ("d", 0), ("e", 1))]
    await turns()
    assert (order, kept.waiting()) == ([], {"b", "c", "d", "e"})
    tasks[3].cancel()
    kept.release("1")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["d", "c", "b"]
    assert (kept.num_loaded, kept.waiting()) == (1, set())


async def test_an_adapter_in_use_does_not_keep_others_out_forever() -> None:
    """Given an adapter that always has a run, and a run that waits for another one."""
    with stopped_clock() as clock:
        kept = Residents(Loader(), 1)
        await kept.acquire("1", ref("a"), 1)
        waiting = asyncio.create_task(kept.acquire("2", ref("b"), 1))
        await turns()
        await kept.acquire("3", ref("a"), 1)  # shares it
        await clock.advance(residents.PATIENCE_S)
        late = asyncio.create_task(kept.acquire("4", ref("a"), 1))
        await turns()
        assert not late.done()
        kept.release("1")
        kept.release("3")
        assert await waiting == "b"
        kept.release("2")
        assert await late == "a"


async def test_a_failure_ends_its_own_runs_and_is_tried_again() -> None:
    kept = Residents(Loader(), 1)
    runs = [kept.acquire(str(i), ref("broken"), 0) for i in range(2)]
    failed = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(each) for each in failed] == [ConfigError, ConfigError]
    assert await kept.acquire("3", ref("a"), 0) == "a"
    assert kept.events == {"failed": 1, "loaded": 1}
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0):
            await kept.acquire("4", ref("broken"), 0)


async def test_an_unregistered_adapter_leaves_when_its_runs_end() -> None:
    loader = Loader()
    kept = Residents(loader, 4)
    same = AdapterRef("other name", "p", "a")
    await kept.acquire("1", ref("a"), 0)
    await kept.acquire("2", same, 0)
    kept.drop("a")
    kept.release("1")
    kept.release("2")
    kept.drop("b")
    assert kept.num_loaded == 1
    kept.drop("other name")
    assert kept.num_loaded == 0
    kept.offer(ref("c"), "c")  # type: ignore[arg-type]
    assert await kept.acquire("3", ref("c"), 0) == "c"
    assert loader.loaded == ["a"]


async def test_a_run_that_ends_while_it_waits_keeps_nobody_out() -> None:
    """Given a run that waits for longer than PATIENCE_S, behind which later ones queue."""
    with stopped_clock() as clock:
        loader = Loader()
        kept = Residents(loader, 1)
        await kept.acquire("1", ref("a"), 1)
        waiting = asyncio.create_task(kept.acquire("2", ref("b"), 1))
        await turns()
        await clock.advance(residents.PATIENCE_S)
        late = asyncio.create_task(kept.acquire("3", ref("a"), 1))
        await turns()
        kept.release("2")
        assert await late == "a"
        await asyncio.wait([waiting])
        assert (waiting.cancelled(), kept.waiting(), loader.loaded) == (True, set(), ["a"])


async def test_a_load_that_fails_late_leaves_its_successor_alone() -> None:
    """Given an adapter that left while it was loaded, and is loaded again."""
    loads: list[asyncio.Future[Any]] = []

    def load(_: AdapterRef) -> asyncio.Future[Any]:
        loads.append(asyncio.get_running_loop().create_future())
        return loads[-1]

    kept = Residents(load, 1)
    for run, name in enumerate("aba"):
        task = asyncio.create_task(kept.acquire(str(run), ref(name), 0))
        await turns()
        if run < 2:
            task.cancel()
            await turns()
    loads[2].set_result("a")
    loads[0].set_exception(ConfigError("gone"))
    assert await task == "a"
    await turns()
    assert kept.num_loaded == 1
