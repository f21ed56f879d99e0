"""Foreign data in the queue and the token log, and deleted parts, end no process and stop no request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as rules
from hypothesis import strategies as st

from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.protocol import PriorityClass, RequestState, TokenEvent
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.runtime.sockets import free_port
from shared.settings import Settings
from shared.token_log.interface import Append
from tests.support.cluster import running
from tests.support.fakes import MODEL, answer, make_request, submit, token_event
from tests.support.foreign_counts import foreign
from tests.support.worker_harness import GatedEngine, Harness, answer_tokens, expected_tokens, wait_for_tokens

LIMIT = 20
NAMES = keys.transport(MODEL)
COUNTERS, WAITING, OVERDUE = NAMES[:3]
LANES, RESTING, STREAMS = NAMES[3:6], NAMES[6:9], NAMES[9:12]
RESERVED, RESERVED_AT, ACCEPTED, PULLERS = NAMES[12:]
HASHES = (WAITING, RESERVED, ACCEPTED, PULLERS, COUNTERS)
OVERWRITTEN = (*RESTING, OVERDUE, RESERVED, RESERVED_AT, PULLERS)
LANE = keys.lane_prefix(MODEL)


async def models() -> list[str]:
    return [MODEL]


def end_of(events: list[TokenEvent]) -> tuple[str, str | None]:
    """Return the state in which an answer ended, and the code of its error."""
    terminal = events[-1].terminal
    assert terminal is not None
    return terminal.state.value, terminal.error.code if terminal.error else None


text = st.binary(max_size=20) | st.sampled_from([b"r", b"i", b"e", b"", b"nan", b"inf", b"{", b"x" * 100_000])
score = st.floats(allow_nan=False)
JUNK = st.one_of(
    st.tuples(
        st.just("xadd"),
        st.sampled_from(STREAMS),
        st.lists(st.tuples(text, text), min_size=1, max_size=4).map(tuple),
    ),
    st.tuples(
        st.just("hset"), st.sampled_from([WAITING, RESERVED, ACCEPTED, PULLERS, COUNTERS]), st.tuples(text, text)
    ),
    st.tuples(
        st.just("hset"),
        st.just(COUNTERS),
        st.tuples(
            st.sampled_from([b"n", b"t", b"n#2", b"ordinal", b"at", b"rt", b"n:default", b"t:default"]), text
        ),
    ),
    st.tuples(
        st.just("zadd"),
        st.sampled_from([*LANES, *RESTING, OVERDUE, RESERVED_AT, f"{LANE}2:default", f"{LANE}1:x"]),
        st.tuples(text, score),
    ),
    st.tuples(st.just("set"), st.sampled_from(OVERWRITTEN), st.tuples(text)),
)


async def write(backend: Backend, junk: tuple[str, str, Any]) -> None:
    kind, key, parts = junk
    if kind == "xadd":
        flat = [each for pair in parts for each in pair]
        await backend.redis.execute_command("XADD", key, "*", *flat)
    elif kind == "set":
        await backend.redis.execute_command("SET", key, *parts)
    else:
        await backend.redis.execute_command("DEL", *([key] if await kind_of(backend, key) == b"string" else ["-"]))
        arguments = parts if kind == "hset" else parts[::-1]
        await backend.redis.execute_command(kind.upper(), key, *arguments)


async def kind_of(backend: Backend, key: str) -> bytes:
    found: bytes = await backend.redis.execute_command("TYPE", key)
    return found


@given(st.lists(JUNK | st.sampled_from(list(PriorityClass)), min_size=1, max_size=12))
@rules(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_requests_among_junk_are_all_answered(settings: Settings, written: list[Any]) -> None:
    """Among junk in the queue's keys, every request is answered and every junk entry is set aside."""

    async def run() -> None:
        backend = Backend.open(settings)
        try:
            await backend.redis.flushall()
            requests, entries = [], 0
            for each in [*written, PriorityClass.STANDARD]:
                if isinstance(each, PriorityClass):
                    requests.append(make_request(priority=each))
                    await backend.transport.lost(
                        MODEL
                    )  # as a sweeper does every few seconds: it mends the counters
                    await submit(backend, requests[-1])
                else:
                    entries += each[0] == "xadd"
                    await write(backend, each)
            await backend.transport.lost(MODEL)
            sweeping = asyncio.create_task(Sweeper(backend, models).run())
            async with Harness(backend, settings).worker(), asyncio.timeout(LIMIT):
                for request in requests:
                    assert end_of(await answer(backend, request.id)) == ("completed", None)
                while any([await backend.redis.xlen(stream) for stream in STREAMS]):
                    await asyncio.sleep(0.02)
                assert foreign(backend).get("queue", 0) >= entries
                assert not sweeping.done()
            sweeping.cancel()
        finally:
            await backend.close()

    asyncio.run(run())


@pytest.fixture
async def sweeping(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Task[None]]:
    monkeypatch.setattr("producer_api.background.sweeper.ROUND_S", 0.05)
    task = asyncio.create_task(Sweeper(backend, models).run())
    yield task
    assert not task.done()
    task.cancel()


async def delete_entry(backend: Backend, job_id: str) -> None:
    for stream in STREAMS:
        for entry, _ in await backend.redis.xrange(stream):
            await backend.redis.xdel(stream, entry)


async def delete_stream(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(*STREAMS)


async def delete_log(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(keys.log(job_id))


async def delete_state(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(keys.state(job_id))


async def write_state(backend: Backend, job_id: str) -> None:
    await backend.redis.hset(keys.state(job_id), "epoch", "many")


async def retype_state(backend: Backend, job_id: str) -> None:
    await backend.redis.set(keys.state(job_id), "a string")


async def write_log(backend: Backend, job_id: str) -> None:
    await backend.redis.xadd(keys.log(job_id), {"e": "{"})  # its id is beyond all seqs


Damage = Callable[[Backend, str], Awaitable[None]]


@pytest.mark.parametrize(
    "damage", [delete_entry, delete_stream, delete_log, delete_state, write_state, retype_state, write_log]
)
async def test_a_running_request_that_is_damaged_ends(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None], damage: Damage
) -> None:
    """The reader of a running request gets an error if its entry, log or state is deleted or overwritten."""
    engine = GatedEngine(3)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        request, neighbour = make_request(max_tokens=1000), make_request(max_tokens=4)
        await submit(backend, request)
        reading = asyncio.create_task(answer(backend, request.id))
        await wait_for_tokens(backend, request, 2)
        await damage(backend, request.id)
        engine.limit = 2 if damage in (delete_entry, delete_stream) else 100_000
        assert end_of(await reading) == ("failed", "request_lost")
        engine.limit = 100_000
        await submit(backend, neighbour)
        assert end_of(await answer(backend, neighbour.id)) == ("completed", None)


async def acknowledge_entry(backend: Backend, stream: str, held: dict[str, Any]) -> None:
    await backend.redis.xack(stream, keys.GROUP, held["message_id"])


async def delete_consumer(backend: Backend, stream: str, held: dict[str, Any]) -> None:
    await backend.redis.xgroup_delconsumer(stream, keys.GROUP, held["consumer"])


async def destroy_group(backend: Backend, stream: str, held: dict[str, Any]) -> None:
    await backend.redis.xgroup_destroy(stream, keys.GROUP)


@pytest.mark.parametrize("damage", [acknowledge_entry, delete_consumer, destroy_group])
async def test_a_request_whose_lease_is_deleted_runs_again(
    backend: Backend,
    settings: Settings,
    sweeping: asyncio.Task[None],
    damage: Callable[[Backend, str, dict[str, Any]], Awaitable[None]],
) -> None:
    """A held entry without a lease is claimed at once; the answer goes on after its logged tokens."""
    request, engine = make_request(max_tokens=20), GatedEngine(3)
    stream = keys.queue(MODEL, request.priority)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        await submit(backend, request)
        reading = asyncio.create_task(answer(backend, request.id))
        await wait_for_tokens(backend, request, 2)
        [held] = await backend.redis.xpending_range(stream, keys.GROUP, "-", "+", 10)
        await damage(backend, stream, held)
        while (lease_epoch := await backend.redis.hget(keys.state(request.id), "epoch")) == b"1":
            await asyncio.sleep(0.01)
        engine.limit = 100_000
        assert answer_tokens(await reading) == expected_tokens(request)
        assert lease_epoch == b"2"
        while await backend.redis.xlen(stream):
            await asyncio.sleep(0.01)


async def delete_waiting(backend: Backend, job_id: str) -> None:
    await backend.redis.hdel(WAITING, job_id)


async def delete_from_lane(backend: Backend, job_id: str) -> None:
    await backend.redis.zrem(f"{LANE}2:default", job_id)


async def delete_lane(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(f"{LANE}2:default")


async def delete_lanes(backend: Backend, job_id: str) -> None:
    await backend.redis.delete(*LANES)


@pytest.mark.parametrize("damage", [delete_waiting, delete_from_lane, delete_lane, delete_lanes])
async def test_a_waiting_request_whose_place_is_deleted_ends(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None], damage: Damage
) -> None:
    request, neighbour = make_request(), make_request(tenant="other")
    await submit(backend, request)
    reading = asyncio.create_task(answer(backend, request.id))
    async with backend.live.subscribe(keys.live_channel(request.id)):
        await damage(backend, request.id)
        async with asyncio.timeout(LIMIT):
            assert end_of(await reading) == ("failed", "request_lost")
    await submit(backend, neighbour)
    async with Harness(backend, settings).worker(), asyncio.timeout(LIMIT):
        assert end_of(await answer(backend, neighbour.id)) == ("completed", None)
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_deleted_counters_are_made_anew(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None]
) -> None:
    request = make_request()
    await submit(backend, request)
    await backend.redis.delete(COUNTERS)
    async with Harness(backend, settings).worker(), asyncio.timeout(LIMIT):
        assert end_of(await answer(backend, request.id)) == ("completed", None)


@pytest.mark.parametrize("junk", [b"junk", b"1:1:0:{}"])
async def test_counters_are_corrected_beside_junk(
    backend: Backend, settings: Settings, sweeping: asyncio.Task[None], junk: bytes
) -> None:
    """With wrong counters, and an id without a lane among the waiting ones, a waiting request is answered."""
    request = make_request()
    await submit(backend, request)
    await backend.redis.hset(COUNTERS, "n#2", 0)
    await backend.redis.hset(WAITING, "stray", junk)
    async with Harness(backend, settings).worker(), asyncio.timeout(LIMIT):
        assert end_of(await answer(backend, request.id)) == ("completed", None)
        while await backend.redis.exists(WAITING):
            await asyncio.sleep(0.01)


async def test_used_up_ids_of_a_stream_stop_nothing(backend: Backend, settings: Settings) -> None:
    """With an entry under the last possible id, a held request and the next one are answered."""
    held, following = make_request(max_tokens=4), make_request()
    engine = GatedEngine(1)
    async with Harness(backend, settings).worker(engine), asyncio.timeout(LIMIT):
        await submit(backend, held)
        await wait_for_tokens(backend, held, 1)
        await backend.redis.xadd(STREAMS[1], {"x": "y"}, id=f"{2**64 - 1}-{2**64 - 1}")
        await submit(backend, following)
        engine.limit = 100_000
        for request in (held, following):
            assert end_of(await answer(backend, request.id)) == ("completed", None)


async def test_a_resumed_answer_with_a_gap_ends(backend: Backend) -> None:
    request = make_request()
    await submit(backend, request)
    [lease] = await backend.token_log.acquire([request.id], "a")
    assert lease is not None
    for seq in range(3):
        assert await backend.token_log.append([Append(lease, token_event(seq, "x"), 1)]) == [True]
    await backend.redis.xdel(keys.log(request.id), "2-0")
    assert end_of(await answer_from(backend, request.id)) == ("failed", "request_lost")
    assert await backend.token_log.acquire([request.id], "b") == [None]
    record = await backend.token_log.record(request.id)
    assert record is not None
    assert (record.state, record.finish) == (RequestState.FAILED, "request_lost")


async def answer_from(backend: Backend, job_id: str) -> list[TokenEvent]:
    async with asyncio.timeout(LIMIT):
        return await answer(backend, job_id)


async def test_junk_on_the_live_channel_disturbs_no_reader(backend: Backend, settings: Settings) -> None:
    request = make_request(max_tokens=3)
    await submit(backend, request)
    reading = asyncio.create_task(answer_from(backend, request.id))
    for junk in (b"", b"\xff", b"{", b"[1,2"):
        await backend.redis.publish(keys.live_channel(request.id), junk)
    async with Harness(backend, settings).worker():
        assert end_of(await reading) == ("completed", None)


async def test_foreign_entries_are_kept_for_an_operator(backend: Backend) -> None:
    """A foreign entry of a stream is recorded once in the queue's bounded stream, with the reason."""
    await backend.redis.xadd(STREAMS[1], {"what": "ever"})
    request = make_request()
    await submit(backend, request)
    [delivery] = (await backend.transport.pull(MODEL, "a", Room.all(1))).found
    assert isinstance(delivery, Delivery)
    assert delivery.request == request
    [(_, kept)] = await backend.redis.xrange(f"hr:{{q:{MODEL}}}:foreign")
    assert (kept[b"reason"], kept[b"content"]) == (b"not an entry of this queue", b"what ever")
    assert await backend.redis.xlen(STREAMS[1]) == 1
    assert foreign(backend) == {"queue": 1}


@pytest.mark.slow
async def test_processes_stay_and_serve_among_junk(tmp_path: Path) -> None:
    """With junk in place of each key, the same processes keep answering."""
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 3}
    admin = free_port("127.0.0.1")
    async with running(tmp_path, apis=1, workers=1, admin_port=admin) as cluster:
        backend = Backend.open(Settings(redis_url=cluster.store.url, data_dir=tmp_path))
        pids = [node.pid for node in cluster.nodes]
        try:
            async with (
                httpx.AsyncClient(base_url=cluster.urls[0], timeout=LIMIT) as client,
                asyncio.timeout(4 * LIMIT),
            ):
                assert (await client.post("/v1/completions", json=body)).status_code == 200
                names = [*NAMES, keys.WORKERS, keys.MODELS, keys.DEAD_INDEX, keys.WEBHOOKS_DUE, *keys.LEDGER]
                for write in (retype, retype_as_set):
                    for name in names:
                        await write(backend, name)
                    for stream in STREAMS:
                        await backend.redis.delete(stream)
                        await backend.redis.xadd(stream, {"x": b"\xff"})
                    for channel in ("hr:notify:x", keys.wake_channel(MODEL)):
                        await backend.redis.publish(channel, b"\xff")
                    while (response := await client.post("/v1/completions", json=body)).status_code != 200:
                        assert response.status_code in (404, 429, 503), response.text
                        await asyncio.sleep(0.1)  # until heartbeat and sweeper have restored what was overwritten
                    assert response.json()["usage"]["completion_tokens"] == 3
                assert (
                    "headrace_foreign_entries_total{structure="
                    in (await client.get(f"http://127.0.0.1:{admin}/metrics")).text
                )
        finally:
            await backend.close()
        assert [node.pid for node in cluster.nodes] == pids
        assert all(node.running for node in cluster.nodes)


async def retype(backend: Backend, name: str) -> None:
    await backend.redis.set(name, b"\xff")


async def retype_as_set(backend: Backend, name: str) -> None:
    await backend.redis.delete(name)
    await backend.redis.sadd(name, b"\xff")
