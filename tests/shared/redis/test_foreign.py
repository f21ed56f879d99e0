"""Foreign data in the queue and the token log ends no process and stops no request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as rules
from hypothesis import strategies as st

from producer_api.background.sweeper import Sweeper
from shared.backend import Backend
from shared.protocol import PriorityClass, Token, TokenEvent
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.runtime.sockets import free_port
from shared.settings import PolicyName, Settings
from shared.token_log.interface import Append
from tests.support.cluster import running
from tests.support.fakes import MODEL, answer, end_of, make_request, one_model, submit
from tests.support.foreign_counts import foreign
from tests.support.worker_harness import GatedEngine, Harness, wait_for_tokens

LIMIT = 20
NAMES = keys.transport(MODEL)
COUNTERS, WAITING, OVERDUE = NAMES[:3]
LANES, RESTING, STREAMS = NAMES[3:6], NAMES[6:9], NAMES[9:12]
RESERVED, RESERVED_AT, ACCEPTED, PULLERS, ROUTES, IN_FLIGHT, SEEN, GATES, RECENT = NAMES[12:]
HASHES = (WAITING, RESERVED, ACCEPTED, PULLERS, COUNTERS, ROUTES, IN_FLIGHT, SEEN, GATES)
OVERWRITTEN = (*RESTING, OVERDUE, RESERVED, RESERVED_AT, PULLERS, ROUTES, IN_FLIGHT, SEEN, GATES, RECENT)
LANE = keys.lane_prefix(MODEL)
ARRIVALS = f"{LANE}arrivals:2:default"


text = st.binary(max_size=20) | st.sampled_from([b"r", b"i", b"e", b"", b"nan", b"inf", b"{", b"x" * 100_000])
score = st.floats(allow_nan=False)
JUNK = st.one_of(
    st.tuples(
        st.just("xadd"),
        st.sampled_from(STREAMS),
        st.lists(st.tuples(text, text), min_size=1, max_size=4).map(tuple),
    ),
    st.tuples(st.just("hset"), st.sampled_from(HASHES), st.tuples(text, text)),
    st.tuples(st.just("hset"), st.sampled_from([IN_FLIGHT, SEEN]), st.tuples(st.just(b"a"), text)),
    st.tuples(
        st.just("hset"),
        st.just(COUNTERS),
        st.tuples(
            st.sampled_from([b"n", b"t", b"n#2", b"ordinal", b"at", b"rt", b"n:default", b"t:default"]),
            text,
        ),
    ),
    st.tuples(
        st.just("zadd"),
        st.sampled_from([*LANES, *RESTING, OVERDUE, RESERVED_AT, ARRIVALS, f"{LANE}2:default", f"{LANE}1:x"]),
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


@given(
    st.lists(JUNK | st.sampled_from(list(PriorityClass)), min_size=1, max_size=12),
    st.sampled_from(["pull", "least-connections"]),
)
@rules(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_requests_among_junk_are_all_answered(settings: Settings, written: list[Any], routing: PolicyName) -> None:
    """Among junk in the queue's keys, every request is answered and every junk entry is set aside."""
    settings = settings.model_copy(update={"routing": routing})

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
            sweeping = asyncio.create_task(Sweeper(backend, one_model).run())
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


@pytest.mark.parametrize(
    "junk",
    [("SET", "state", "x"), ("SET", "log", "x"), ("HSET", "state", "seq", "x"), ("HSET", "state", "epoch", "x")],
)
async def test_a_foreign_key_harms_no_other_append_of_its_call(backend: Backend, junk: tuple[str, ...]) -> None:
    """Given three requests whose tokens are appended in one call, one of them overwritten by another program."""
    requests = [make_request(), make_request(), make_request()]
    for request in requests:
        await submit(backend, request)
    leases = await backend.token_log.acquire([request.id for request in requests], "a")
    command, key, *arguments = junk
    await backend.redis.execute_command(command, f"hr:{{{requests[1].id}}}:{key}", *arguments)
    event = TokenEvent(seq=0, tokens=(Token(choice=0, id=5, text="a"),))
    appends = [Append(lease, event, prompt_tokens=3) for lease in leases if lease is not None]
    first, _, third = await backend.token_log.append(appends)
    assert first and third
    for request in (requests[0], requests[2]):
        assert (await backend.token_log.read(request.id)).events == (event,)
