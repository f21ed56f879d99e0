"""Policies on recorded states of workers."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.routing.consistent_hash import ConsistentHash
from shared.routing.fastest_response import EXPLORE_EVERY, FastestResponse
from shared.routing.interface import Policy, RequestTraits, WorkerState
from shared.routing.least_connections import LeastConnections
from shared.routing.load_bound import ALWAYS_ALLOWED, below_bound
from shared.routing.prefix_aware import PrefixAware
from shared.routing.round_robin import RoundRobin
from shared.routing.selection import POLICIES, make_policy
from shared.routing.weighted_round_robin import WeightedRoundRobin
from shared.settings import Settings

ANY = RequestTraits()
BOUND = 1.5


def digest(value: object) -> bytes:
    return hashlib.blake2b(str(value).encode(), digest_size=8).digest()


def of_key(number: int) -> RequestTraits:
    return RequestTraits(tokens=1, key=digest(number))


def of_text(*chunks: str) -> RequestTraits:
    return RequestTraits(tokens=10, prefixes=tuple(digest(chunks[: i + 1]) for i in range(len(chunks))))


def idle(*names: str) -> list[WorkerState]:
    return [WorkerState(name) for name in sorted(names)]


def chosen(policy: Policy, workers: list[WorkerState], count: int) -> list[str]:
    return [policy.choose(ANY, workers) for _ in range(count)]


def test_every_policy_of_the_settings_has_a_module() -> None:
    for name in POLICIES:
        policy = make_policy(Settings(routing=name), "m")
        assert policy is not None
        assert policy.choose(ANY, idle("a")) == "a"
    assert make_policy(Settings(), "m") is None
    assert make_policy(Settings(routing="round-robin", model_routing={"m": "pull"}), "m") is None


def test_round_robin_takes_turns_while_workers_come_and_go() -> None:
    policy = RoundRobin()
    assert chosen(policy, idle("a", "b", "c"), 4) == ["a", "b", "c", "a"]
    assert chosen(policy, idle("a", "c"), 2) == ["c", "a"]
    assert chosen(policy, idle("a", "b", "c"), 2) == ["b", "c"]


def test_weighted_round_robin_spreads_turns_as_nginx_does() -> None:
    workers = [WorkerState("a", weight=5), WorkerState("b", weight=1), WorkerState("c", weight=1)]
    assert "".join(chosen(WeightedRoundRobin(), workers, 7)) == "aabacaa"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_weighted_round_robin_is_exactly_proportional(weights: list[int], rounds: int) -> None:
    workers = [WorkerState(str(i), weight=weight) for i, weight in enumerate(weights)]
    taken = Counter(chosen(WeightedRoundRobin(), workers, rounds * sum(weights)))
    assert taken == {str(i): rounds * weight for i, weight in enumerate(weights)}


def test_without_weights_the_measured_speed_counts() -> None:
    workers = [WorkerState("fast", tokens_per_s=300), WorkerState("slow", tokens_per_s=100)]
    assert Counter(chosen(WeightedRoundRobin(), workers, 40)) == {"fast": 30, "slow": 10}


def test_a_worker_without_a_measured_speed_gets_the_mean() -> None:
    workers = [WorkerState("a", tokens_per_s=300), WorkerState("b", tokens_per_s=100), WorkerState("new")]
    assert Counter(chosen(WeightedRoundRobin(), workers, 60)) == {"a": 30, "b": 10, "new": 20}


def test_least_connections_counts_tokens_in_flight() -> None:
    workers = [WorkerState("a", 100), WorkerState("b", 99), WorkerState("c", 5000)]
    assert chosen(LeastConnections(), workers, 2) == ["b", "b"]
    assert set(chosen(LeastConnections(), idle("a", "b", "c"), 3)) == {"a", "b", "c"}


@given(st.integers(2, 12))
def test_a_joining_worker_moves_only_its_own_share_of_keys(count: int) -> None:
    policy, keys = ConsistentHash(BOUND), [of_key(i) for i in range(1000)]
    before = idle(*map(str, range(count)))
    after = idle(*map(str, range(count + 1)))
    moved = [new for key in keys if policy.choose(key, before) != (new := policy.choose(key, after))]
    assert set(moved) == {str(count)}
    assert len(moved) / len(keys) <= 1 / (count + 1) + 0.05


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8), st.floats(1, 3))
def test_consistent_hashing_keeps_the_bound(costs: list[int], count: int, bound: float) -> None:
    """A worker exceeds the bound by at most one request, though all keys are the same, once it has two."""
    policy, loads = ConsistentHash(bound), dict.fromkeys(map(str, range(count)), 0)
    for cost in costs:
        request = RequestTraits(tokens=cost, key=b"same")
        name = policy.choose(request, [WorkerState(worker, load) for worker, load in loads.items()])
        loads[name] += cost
        assert loads[name] - cost <= max(bound * sum(loads.values()) / count + 1e-6, ALWAYS_ALLOWED * cost)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), st.integers(1, 1000))
def test_a_worker_is_always_below_the_bound(loads: list[int], cost: int) -> None:
    workers = [WorkerState(str(i), load) for i, load in enumerate(loads)]
    assert below_bound(RequestTraits(tokens=cost), workers, 1.0)


def test_the_overflow_of_a_key_goes_to_one_other_worker() -> None:
    policy = ConsistentHash(BOUND)
    first = policy.choose(of_key(1), idle("a", "b", "c", "d"))
    full = [WorkerState(name, 1000 * (name == first)) for name in "abcd"]
    assert len({policy.choose(of_key(1), full) for _ in range(5)} - {first}) == 1


def test_fastest_response_prefers_the_worker_that_answers_first() -> None:
    workers = [WorkerState("fast", first_token_s=0.1), WorkerState("slow", first_token_s=0.4)]
    policy = FastestResponse()
    assert Counter(chosen(policy, workers, EXPLORE_EVERY * 3)) == {"fast": 57, "slow": 3}


def test_fastest_response_measures_new_workers_first() -> None:
    workers = [WorkerState("a", first_token_s=0.1), WorkerState("b"), WorkerState("c")]
    assert chosen(FastestResponse(), workers, 3) == ["b", "b", "b"]
    workers[1] = WorkerState("b", tokens_in_flight=1)
    assert chosen(FastestResponse(), workers, 1) == ["c"]


def test_a_new_worker_does_not_get_everything_until_it_is_measured() -> None:
    workers = [WorkerState("known", 10, first_token_s=0.1), WorkerState("new", 20)]
    assert FastestResponse().choose(ANY, workers) == "known"
    assert FastestResponse().choose(ANY, [WorkerState("a", 2), WorkerState("b", 1)]) == "b"


def test_fastest_response_counts_the_work_before_a_request() -> None:
    workers = [WorkerState("fast", 500, first_token_s=0.1), WorkerState("slow", 50, first_token_s=0.4)]
    assert FastestResponse().choose(RequestTraits(tokens=10), workers) == "slow"


def test_the_few_requests_of_an_idle_model_stay_on_their_worker() -> None:
    policy = ConsistentHash(BOUND)
    home = policy.choose(of_key(1), idle("a", "b", "c", "d"))
    for held in (1, 2):
        workers = [WorkerState(name, held * (name == home)) for name in "abcd"]
        assert policy.choose(of_key(1), workers) == home


def test_a_short_common_prefix_keeps_nothing_from_a_new_worker() -> None:
    policy = PrefixAware(BOUND)
    for i in range(30):
        policy.choose(of_text("system", f"chat {i}", "a", "b", "c"), idle("a", "b", "c"))
    loaded = [*(WorkerState(name, 30) for name in "abc"), WorkerState("new", 0)]
    assert policy.choose(of_text("system", "another", "a", "b", "c"), loaded) == "new"
    assert policy.choose(of_text("system", "chat 7", "a", "b", "c"), loaded) != "new"


def test_prefix_aware_follows_the_longest_known_prefix() -> None:
    policy = PrefixAware(BOUND)
    system = policy.choose(of_text("system", "one"), idle("a", "b"))
    [other] = {"a", "b"} - {system}
    busy = [WorkerState(name, 100 * (name == system)) for name in ("a", "b")]
    assert policy.choose(of_text("system", "two"), busy) == other  # the first is above the bound

    assert policy.choose(of_text("system", "one", "more"), idle("a", "b")) == system
    assert policy.choose(of_text("system", "two", "more"), idle("a", "b")) == other


def test_prefix_aware_keeps_the_load_bound() -> None:
    policy = PrefixAware(BOUND)
    home = policy.choose(of_text("system"), idle("a", "b", "c"))
    full = [WorkerState(name, 300 if name == home else 100) for name in "abc"]
    assert policy.choose(of_text("system", "more"), full) != home


def test_unknown_prompts_go_to_the_least_loaded_worker() -> None:
    workers = [WorkerState("a", 10), WorkerState("b", 9), WorkerState("c", 11)]
    assert PrefixAware(BOUND).choose(of_text("new"), workers) == "b"
    assert PrefixAware(BOUND).choose(ANY, workers) == "b"


def test_replicas_send_a_new_prompt_to_the_same_idle_worker() -> None:
    for i in range(20):
        assert len({PrefixAware(BOUND).choose(of_text(str(i)), idle("a", "b", "c")) for _ in range(2)}) == 1


def test_known_prefixes_are_bounded_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.routing.prefix_aware.MAX_PREFIXES", 100)
    policy = PrefixAware(BOUND)
    home = policy.choose(of_text("old"), idle("a", "b"))
    [other] = {"a", "b"} - {home}
    for i in range(100):
        policy.choose(of_text(str(i)), idle("a", "b"))
    assert len(policy._holders) == 100
    loaded = [WorkerState(name, 10 + (name == home)) for name in ("a", "b")]
    assert policy.choose(of_text("old"), loaded) == other


@pytest.mark.parametrize("name", POLICIES)
def test_only_present_workers_are_chosen(name: str) -> None:
    policy = make_policy(Settings(routing=name), "m")
    requests = [RequestTraits(5, digest(i), (digest(i % 3),)) for i in range(30)]
    for request in requests:
        assert policy.choose(request, idle("a", "b", "c")) in "abc"
    for request in requests:
        assert policy.choose(request, idle("b", "d")) in "bd"
