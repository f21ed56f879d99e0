"""Each store keeps values within its bounds, and whatever else is found in it is a miss."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
import torch

from headrace.doctor.redis_acl import acl_rule
from shared.errors import ConfigError
from shared.redis.cluster import SLOTS
from shared.redis.embedded import EmbeddedServer
from shared.runtime.sockets import free_port, free_ports
from tests.support.engine_driver import drain
from tests.support.kv_tiers import SAMPLED_REQUEST, load_tiered, settle, tier_stats
from tests.support.redis_servers import HOST, Node, running, until
from workers.engine.stats import TierStats
from workers.engine.tiers.codec import CONTENT_AT, BlockCodec
from workers.engine.tiers.disk_store import DiskStore
from workers.engine.tiers.memory_store import MemoryStore
from workers.engine.tiers.options import TierOptions
from workers.engine.tiers.redis_store import PARTS, RedisStore
from workers.engine.tiers.store import Store, StoreFailed

SIZE = 1000
KEYS = [bytes([number]) * 32 for number in range(8)]


def value(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


@pytest.fixture(params=["memory", "disk", "redis"])
def store(request: pytest.FixtureRequest, valkey: EmbeddedServer, tmp_path: Path) -> Iterator[Store]:
    """A store with room for 32 values, in Redis two in each part."""
    if request.param == "memory":
        yield MemoryStore(32 * SIZE)
    elif request.param == "disk":
        yield DiskStore(tmp_path / "tier", SIZE, budget=32 * SIZE, ttl=60)
    else:
        made = RedisStore(valkey.url, tmp_path.name, SIZE, budget=2 * PARTS * SIZE, ttl=60, timeout=30)
        yield made
        made.close()


def test_values_are_found_until_they_are_dropped(store: Store) -> None:
    for number in (0, 1, 3):
        assert store.put(KEYS[number], value(number))
    assert store.count(KEYS) == 2
    assert store.keep(KEYS[:4]) == [True, True, False, True]
    assert [each and bytes(each) for each in store.get(KEYS[:4])] == [value(0), value(1), None, value(3)]
    store.drop(KEYS[0])
    store.drop(KEYS[5])
    assert store.count(KEYS) == 0
    assert store.put(KEYS[3], value(9))
    assert [bytes(each) for each in store.get(KEYS[3:4]) if each] == [value(9)]


def test_the_values_used_longest_ago_give_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given one part of a store that is full, a value that was used since outlives older and younger ones."""
    names = [bytes([16]) + bytes([number]) * 31 for number in range(80)]  # one part of Redis, with room for two
    room = 2 if store.name == "redis" else 32
    now = time.time()
    ages = iter(range(10_000))
    monkeypatch.setattr(os, "utime", _later(now, ages))
    for number, name in enumerate(names[:room]):
        _put(store, name, number)
    assert store.keep(names[:1]) == [True]
    for number, name in enumerate(names[room:-1], room):
        _put(store, name, number)
        assert store.keep(names[:1]) == [True], "it is in use"
    there = sum(store.count([name]) for name in names)
    assert 2 <= there <= room
    assert store.count(names[-2:-1]) == 1


def _put(store: Store, name: bytes, number: int) -> None:
    assert store.put(name, value(number))
    store.keep([name])


def _later(now: float, ages: Iterator[int]) -> Callable[..., None]:
    """Return a clock of files of which each use is a second after the last one."""
    utime = os.utime

    def mark(path: int | str | Path, **options: bool) -> None:
        at = now - 50 + next(ages) / 1000
        utime(path, (at, at), **options)

    return mark


@pytest.fixture
def codec() -> BlockCodec:
    return BlockCodec((2, 2, 1, 4, 8), torch.float32)


def sealed(codec: BlockCodec, key: bytes) -> bytearray:
    frame = codec.frame()
    frame[CONTENT_AT:] = np.frombuffer(random.Random(key[0]).randbytes(codec.content_bytes), np.uint8)
    return bytearray(codec.seal(key, frame))


def test_only_a_whole_value_of_the_key_is_opened(codec: BlockCodec) -> None:
    whole = sealed(codec, KEYS[1])
    found = codec.open(KEYS[1], bytes(whole))
    assert found is not None
    assert bytes(found) == random.Random(1).randbytes(codec.content_bytes)
    for position in (*range(CONTENT_AT + 2), len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        assert codec.open(KEYS[1], bytes(flipped)) is None, position
    for wrong in (b"", b"x", whole[:-1], whole + b"x", bytes(len(whole)), os.urandom(len(whole))):
        assert codec.open(KEYS[1], bytes(wrong)) is None
    assert codec.open(KEYS[2], bytes(whole)) is None, "it belongs to another key"
    other = BlockCodec((2, 2, 2, 2, 8), torch.float32)
    assert other.value_bytes == codec.value_bytes
    assert other.open(KEYS[1], bytes(whole)) is None, "another layout"
    assert BlockCodec((4, 2, 1, 4, 8), torch.float16).open(KEYS[1], bytes(whole)) is None


Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def link(path: Path) -> None:
    target = path.with_suffix(".target")
    path.rename(target)
    path.symlink_to(target)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [flip, cut, zero, link, folder, pipe])
def test_damaged_files_are_misses(damage: Damage, codec: BlockCodec, tmp_path: Path) -> None:
    """Given damage in a file, it is not found or not opened, and it can be replaced unless it is a folder."""
    store = DiskStore(tmp_path / "tier", codec.value_bytes, budget=2**20, ttl=60)
    whole = bytes(sealed(codec, KEYS[1]))
    assert store.put(KEYS[1], whole)
    assert store.get(KEYS[1:2]) == [whole]
    [path] = tmp_path.glob("tier/*/*.kv")
    damage(path)
    assert store.count(KEYS[1:2]) == store.keep(KEYS[1:2])[0] == (damage in (flip, zero))
    assert codec.open(KEYS[1], store.get(KEYS[1:2])[0] or b"") is None
    store.drop(KEYS[1])
    assert store.put(KEYS[1], whole) == (damage is not folder)
    assert not list(tmp_path.glob("tier/*/*.part"))


@pytest.mark.slow
def test_damaged_values_in_redis_are_computed_and_replaced(
    llama: Path, options: Callable[[str], TierOptions], valkey: EmbeddedServer
) -> None:
    """Given values of other types, other lengths, other keys and flipped bits, answers stay the same."""
    tier = options("redis")
    with redis.Redis.from_url(valkey.url) as client:
        expected, _ = _answer(llama, tier)
        places = sorted(client.scan_iter("hr:{kv:*:block:*", count=1000))
        assert len(places) == 17
        whole = client.get(places[0])
        assert isinstance(whole, bytes)
        for number, place in enumerate(places):
            client.delete(place)
            if number % 4 == 0:
                client.rpush(place, "x")
            else:
                client.set(place, [b"", whole[:-1], whole][number % 4 - 1])
        for place in client.scan_iter("hr:{kv:*:index", count=1000):
            client.set(place, b"\xff")
        second, found = _answer(llama, tier)
        assert (second, found.hits, found.damaged, found.failures) == (expected, 0, 12, 0)
        assert len(list(client.scan_iter("hr:{kv:*:index", count=1000))) > 1
        third, found = _answer(llama, tier)
        assert (third, found.hits, found.damaged) == (expected, 48, 0)


def _answer(llama: Path, tier: TierOptions) -> tuple[list[int], TierStats]:
    engine = load_tiered(llama, tier)
    engine.add(SAMPLED_REQUEST)
    found = drain(engine).ids("r")
    settle(engine)
    return found, tier_stats(engine)


def test_the_user_of_a_worker_may_use_the_store(valkey: EmbeddedServer) -> None:
    """Given a user with the permissions of a worker, all calls of the store succeed, also after a restart."""
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command(*acl_rule("worker").replace("PASSWORD", "secret").split())
        url = f"redis://headrace-worker:secret@127.0.0.1:{valkey.port}/0"
        store = RedisStore(url, "acl", SIZE, budget=PARTS * SIZE, ttl=60, timeout=30)
        for number in (0, PARTS):  # one part, with room for one value
            assert store.put(bytes([number]) * 32, value(number))
            client.script_flush()
        assert store.keep([bytes([0]) * 32, bytes([PARTS]) * 32]) == [False, True]
        store.drop(bytes([PARTS]) * 32)
        assert store.count([bytes([PARTS]) * 32]) == 0
        store.close()
        client.execute_command("ACL", "DELUSER", "headrace-worker")


@pytest.mark.slow
def test_values_are_spread_over_a_cluster(tmp_path: Path) -> None:
    ports = free_ports(HOST, 4)
    nodes = [
        Node(tmp_path / str(port), "cluster-enabled yes", f"cluster-port {bus}", port=port)
        for port, bus in zip(ports[:2], ports[2:], strict=True)
    ]
    with running(*nodes):
        for number, node in enumerate(nodes):
            node.call("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // 2, (number + 1) * SLOTS // 2 - 1)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        nodes[1].call("CLUSTER", "MEET", HOST, ports[0], ports[2])
        until(lambda: all("cluster_state:ok" in str(node.call("CLUSTER", "INFO")) for node in nodes))
        url = f"redis+cluster://{HOST}:{ports[0]}"
        store = RedisStore(url, "scope", SIZE, budget=2 * PARTS * SIZE, ttl=60, timeout=30)
        names = [bytes([number]) * 32 for number in range(3 * PARTS)]
        for number, name in enumerate(names):
            assert store.put(name, value(number))
        assert store.count(names[PARTS:]) == 2 * PARTS
        assert store.count(names) == 0, "a third value of a part replaces the first one"
        assert [bytes(each or b"") for each in store.get(names[PARTS:])] == [*map(value, range(PARTS, 3 * PARTS))]
        assert all(node.call("DBSIZE") for node in nodes)
        store.close()


def test_redis_that_cannot_be_reached_fails_within_its_timeout() -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port('127.0.0.1')}", "s", SIZE, budget=SIZE, ttl=60)
    for call in (lambda: store.count(KEYS), lambda: store.get(KEYS), lambda: store.put(KEYS[0], value(0))):
        with pytest.raises(StoreFailed):
            call()
    store.close()


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("open", "link", "file"):
        with pytest.raises(ConfigError, match="kv_tier_dir"):
            DiskStore(tmp_path / name, SIZE, budget=SIZE, ttl=60)


def test_files_are_private_and_old_ones_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "tier"
    store = DiskStore(place, SIZE, budget=64 * SIZE, ttl=60)
    assert store.put(KEYS[0], value(0))
    [file] = place.glob("*/*.kv")
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    unfinished = file.with_suffix(".part")
    unfinished.write_bytes(b"x")
    long_ago = time.time() - 7200
    for path in (file, unfinished):
        os.utime(path, (long_ago, long_ago))
    assert DiskStore(place, SIZE, budget=64 * SIZE, ttl=60).put(KEYS[1], value(1))
    assert (file.exists(), unfinished.exists(), store.count(KEYS[1:])) == (False, False, 1)


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """Given a folder that holds other data too, such as a home, and no room left."""
    place, long_ago = tmp_path / "home", time.time() - 7200
    (place / "documents").mkdir(parents=True, mode=0o700)
    (place / "ab").mkdir()
    place.chmod(0o700)
    others = [place / "documents" / "thesis", place / "ab" / "note.kv", place / ("0" * 64 + ".kv")]
    for path in others:
        path.write_bytes(bytes(4 * SIZE))
        os.utime(path, (long_ago, long_ago))
    store = DiskStore(place, SIZE, budget=2 * SIZE, ttl=60)
    for number in range(4):
        assert store.put(KEYS[number], value(number))
    assert all(path.exists() for path in others)
    assert sum(store.count([key]) for key in KEYS[:4]) == 2


def test_a_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    place = tmp_path / "tier"
    store = DiskStore(place, SIZE, budget=64 * SIZE, ttl=60)
    assert store.put(KEYS[0], value(0))
    shutil.rmtree(place)
    assert (store.count(KEYS[:1]), store.get(KEYS[:1]), store.keep(KEYS[:1])) == (0, [None], [False])
    with pytest.raises(StoreFailed):
        store.put(KEYS[0], value(0))
    assert store.put(KEYS[0], value(0))
    assert place.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(place)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFailed):
        store.put(KEYS[1], value(1))
