"""The ledger on a real server: charges, refusals, refunds and settlement."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.backend import Backend
from shared.ledger import store
from shared.ledger.store import Behind, Ledger, Refused
from shared.ledger.types import Charge, End, Entry, Limit
from shared.protocol import new_job_id
from shared.redis import keys
from tests.support.ledger_clock import Clock, clocked_script

STRATEGIES = ["fixed-window", "sliding-window-counter", "moving-window", "token-bucket"]
ENTRY = Entry("acme", "scripted", key_id="k1")


HOUR_S = 3600


@pytest.fixture
async def clock(backend: Backend) -> Clock:
    made = Clock(backend)
    await made.advance(0)
    return made


@pytest.fixture
def ledger(backend: Backend, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Return a ledger whose clock the test moves."""
    assert backend.server is not None
    monkeypatch.setattr(store, "STRATEGIES", clocked_script(tmp_path))
    return Ledger(backend.server, most_unwritten=3)


def limit(
    strategy: str, amount: int, *, cost: int = 1, period: int = HOUR_S, name: str = "", estimated: int = 0
) -> Limit:
    return Limit(strategy, f"{name}{strategy}{period}", amount, period * 1000, cost, estimated)


async def charge(ledger: Ledger, *limits: Limit) -> str:
    job_id = new_job_id()
    await ledger.charge(Charge(job_id, ENTRY, limits))
    return job_id


END = End("completed", "stop", 7, 0, 1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_limit_admits_its_amount_and_reports_the_wait(ledger: Ledger, clock: Clock, strategy: str) -> None:
    allowed = limit(strategy, 3)
    longest = 2 * HOUR_S if strategy == "sliding-window-counter" else HOUR_S
    told = [await ledger.charge(Charge(new_job_id(), ENTRY, [allowed])) for _ in range(3)]
    assert [standing.remaining for [standing] in told] == [2, 1, 0]
    assert all(0 < standing.reset <= longest for [standing] in told)

    with pytest.raises(Refused) as refused:
        await charge(ledger, allowed)

    [standing] = refused.value.standings
    assert 0 < standing.wait <= longest
    await clock.advance(standing.wait - 0.002)
    with pytest.raises(Refused):
        await charge(ledger, allowed)
    await clock.advance(0.002)
    await charge(ledger, allowed)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "slots", "day"])
async def test_a_refusal_by_one_limit_charges_no_other(ledger: Ledger, strategy: str) -> None:
    wide, narrow = limit(strategy, 10, name="wide"), limit("fixed-window", 2, name="narrow")
    for _ in range(2):
        await charge(ledger, wide, narrow)
    for _ in range(5):
        with pytest.raises(Refused):
            await charge(ledger, wide, narrow)
    [standing] = await ledger.look([wide])
    assert standing.remaining == 8


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("tokens", "left"), [(10, 90), (60, 40), (150, 0), (None, 100)])
async def test_the_end_charges_what_it_took(ledger: Ledger, strategy: str, tokens: int | None, left: int) -> None:
    """A charge of 30 of 100 tokens is corrected to less, to more, to more than all, or refunded."""
    estimate = limit(strategy, 100, cost=30, estimated=1)
    job_id = await charge(ledger, estimate)
    assert [standing.remaining for standing in await ledger.look([estimate])] == [70]

    [settled] = await ledger.settle([(job_id, tokens, None)])

    assert settled == ENTRY
    assert [standing.remaining for standing in await ledger.look([estimate])] == [left]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_requests_stay_charged_unless_they_never_began(ledger: Ledger, strategy: str) -> None:
    requests = limit(strategy, 10)
    ran, never = [await charge(ledger, requests) for _ in range(2)]
    await ledger.settle([(ran, 99, None), (never, None, None)])
    assert [standing.remaining for standing in await ledger.look([requests])] == [9]


async def test_a_late_deficit_is_charged_to_the_current_window(ledger: Ledger, clock: Clock) -> None:
    windows = ["fixed-window", "sliding-window-counter", "moving-window"]
    tokens = [limit(strategy, 100, cost=30, estimated=1) for strategy in windows]
    more, less = await charge(ledger, *tokens), await charge(ledger, *tokens)
    await clock.advance(2.05 * HOUR_S)
    await ledger.settle([(more, 50, None), (less, 0, None)])
    assert [standing.remaining for standing in await ledger.look(tokens)] == [80] * 3


async def test_slots_are_held_from_admission_to_the_end(ledger: Ledger) -> None:
    slots = limit("slots", 2)
    first, _ = await charge(ledger, slots), await charge(ledger, slots)
    with pytest.raises(Refused):
        await charge(ledger, slots)
    await ledger.settle([(first, 5, None)])
    await charge(ledger, slots)


async def test_a_budget_is_of_the_day_of_admission(ledger: Ledger, clock: Clock) -> None:
    """A used budget is whole on the next day; a request that ends then is charged to its own day."""
    budget = Limit("day", "k1", 100, 86_400_000, 60, 1)
    late = await charge(ledger, budget)
    with pytest.raises(Refused) as refused:
        await charge(ledger, budget)
    [standing] = refused.value.standings
    assert standing.wait == 86_400

    await clock.advance(86_400)

    await ledger.charge(Charge(new_job_id(), ENTRY, [budget]))
    await ledger.settle([(late, 100, None)])
    assert [standing.remaining for standing in await ledger.look([budget])] == [40]


async def test_a_request_is_charged_and_settled_once(ledger: Ledger) -> None:
    requests, job_id = limit("fixed-window", 10), new_job_id()
    assert await ledger.charge(Charge(job_id, ENTRY, [requests]))
    assert await ledger.charge(Charge(job_id, ENTRY, [requests])) == []
    [standing] = await ledger.look([requests])
    assert standing.remaining == 9
    assert await ledger.settle([(job_id, 1, None), (job_id, 1, None)]) == [ENTRY, None]


@pytest.mark.parametrize("strategy", [*STRATEGIES, "slots", "day"])
async def test_requests_together_are_charged_all_or_none(ledger: Ledger, backend: Backend, strategy: str) -> None:
    def charges(*costs: int) -> list[Charge]:
        return [Charge(new_job_id(), ENTRY, [limit(strategy, 10, cost=cost, estimated=1)]) for cost in costs]

    many = charges(*([1] * 11 if strategy == "slots" else [4] * 3))
    with pytest.raises(Refused) as refused:
        await ledger.charge(*many)
    assert refused.value.standings[0].remaining < many[0].limits[0].cost
    assert await ledger.claim(9) == []
    assert await backend.redis.exists(*keys.LEDGER) == 0
    [standing] = await ledger.look(many[0].limits)
    assert standing.remaining == 10

    some = many[:2]
    await ledger.charge(*some)
    assert await ledger.charge(*some) == []
    [standing] = await ledger.look(many[0].limits)
    assert standing.remaining == 10 - sum(each.limits[0].cost for each in some)


async def test_an_end_is_due_until_it_is_written(ledger: Ledger, backend: Backend) -> None:
    job_id = await charge(ledger)
    [_, due, _] = keys.LEDGER
    assert await ledger.claim(9) == []
    await backend.redis.zadd(due, {job_id: 0})
    [found] = await ledger.claim(9)
    assert (found.job_id, found.entry, found.end) == (job_id, ENTRY, None)
    assert await ledger.claim(9) == []  # it is looked at later again

    await ledger.settle([(job_id, 7, END)])
    await backend.redis.zadd(due, {job_id: 0})
    [found] = await ledger.claim(9)
    assert (found.entry, found.end) == (ENTRY, END)

    await ledger.written([job_id])
    assert await backend.redis.exists(*keys.LEDGER) == 0


async def test_ends_that_nobody_writes_stop_what_is_new(ledger: Ledger) -> None:
    for _ in range(3):
        job_id = await charge(ledger)
        await ledger.settle([(job_id, 7, END)])
    with pytest.raises(Behind):
        await charge(ledger)
    await ledger.written([job_id])
    await charge(ledger)


async def test_what_is_used_up_by_nobody_is_not_kept(ledger: Ledger, backend: Backend) -> None:
    """The key of a window expires once the window is free again."""
    for strategy in STRATEGIES:
        await charge(
            ledger,
            limit(
                strategy,
                3,
            ),
        )
    windows = [key async for key in backend.redis.scan_iter(match=f"{keys.LIMIT_PREFIX}*")]
    assert len(windows) == 5  # a moving window has two
    for key in windows:
        assert 0 < await backend.redis.pttl(key) <= 2 * HOUR_S * 1000
