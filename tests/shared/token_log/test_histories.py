"""Random histories of clients and workers, on a real server and in memory: gapless answers and exact counts.

`HISTORIES` in the environment sets how many histories of each kind are tried; scripts/chaos tries 10,000 in all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shared.protocol import PriorityClass, Request, RequestState, Terminal, Ticket, TokenEvent, Usage
from shared.queue.interface import SPARE_S, Claim, Delivery, Room
from shared.settings import Settings
from shared.token_log.interface import Append, Lease
from tests.support.backends import opened
from tests.support.fakes import MODEL, answer, make_request, token_event
from tests.support.waiting import LIMIT_S

HISTORIES = int(os.environ.get("HISTORIES", "40"))
LEASE = 0.002  # seconds: whatever is held can be claimed by the next worker
WORKERS = st.sampled_from("abc")
Result = TypeVar("Result")


@dataclass
class Known:
    """State of one request in the model."""

    request: Request
    ticket: Ticket
    claim: Claim | None = None
    leases: list[Lease] = field(default_factory=list)
    tokens: int = 0
    ended: RequestState | None = None
    gone: bool = False  # from the queue


class Histories(RuleBasedStateMachine):
    """State machine: clients publish, cancel and read; workers pull, append, lag, die and hand over."""

    kind: str
    config: Settings

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.backend = self.run_async(opened(self.kind, self.config))
        self.known: dict[str, Known] = {}

    def run_async(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            for known in self.known.values():
                self._check_answer(known)
        finally:
            self.run_async(self.backend.close())
            self.runner.close()

    @rule(priority=st.sampled_from(PriorityClass), tenant=st.sampled_from(["x", "y"]))
    def publish(self, priority: PriorityClass, tenant: str) -> None:
        request = make_request(priority=priority, tenant=tenant)
        assert self.run_async(self.backend.token_log.create(request))
        ticket = self.run_async(self.backend.transport.publish(request))
        self.known[request.id] = Known(request, ticket)

    @rule(worker=WORKERS, seats=st.integers(1, 3))
    def pull(self, worker: str, seats: int) -> None:
        waiting = [known for known in self.known.values() if known.claim is None and not known.gone]
        found, more = self._pull(worker, seats)
        assert len(found) == min(seats, len(waiting))
        assert more == (len(waiting) > seats)
        self._hold(worker, found, 1)

    def _pull(self, worker: str, seats: int) -> tuple[list[Delivery], bool]:
        """Pull until nothing is left to less loaded workers; this worker gets what the others do not take."""
        found, more, spared = self.run_async(self.backend.transport.pull(MODEL, worker, Room.all(seats)))
        while spared:
            self.run_async(asyncio.sleep(SPARE_S))
            room = Room(seats, dict.fromkeys(PriorityClass, seats - len(found)))
            rest, more, spared = self.run_async(self.backend.transport.pull(MODEL, worker, room))
            found += rest
        return found, more

    @rule(worker=WORKERS)
    def take_over(self, worker: str) -> None:
        held = {known.claim for known in self.known.values() if known.claim and not known.gone}
        self.run_async(asyncio.sleep(2 * LEASE))
        rest, _, spared = self.run_async(self.backend.transport.claim(MODEL, worker, Room.all(100)))
        found = {item.claim: item for item in rest}
        while spared:
            self.run_async(asyncio.sleep(SPARE_S))  # the leases of what it has taken end meanwhile, too
            rest, _, spared = self.run_async(self.backend.transport.claim(MODEL, worker, Room.all(100)))
            found |= {item.claim: item for item in rest}
        assert found.keys() == held
        self._hold(worker, list(found.values()), None)

    @rule(worker=WORKERS, data=st.data())
    def hand_over(self, worker: str, data: st.DataObject) -> None:
        if known := self._running(data):
            assert known.claim is not None
            self.run_async(self.backend.transport.release(MODEL, known.leases[-1].owner, [known.claim]))

    @rule(data=st.data(), size=st.integers(1, 3))
    def append(self, data: st.DataObject, size: int) -> None:
        if (known := self._running(data)) and known.ended is not RequestState.COMPLETED:
            event = token_event(known.tokens, *["x"] * size)
            assert self._append(known.leases[-1], event) is (known.ended is None)
            known.tokens += size if known.ended is None else 0

    @rule(data=st.data(), shift=st.sampled_from([-2, -1, 1]))
    def append_elsewhere(self, data: st.DataObject, shift: int) -> None:
        """Append with a gap, which is refused, or a repeat, which is accepted and changes nothing."""
        known = self._running(data)
        if known and known.ended is not RequestState.COMPLETED and known.tokens + shift >= 0:
            accepted = self._append(known.leases[-1], token_event(known.tokens + shift, "y"))
            assert accepted is (shift < 0 and known.ended is None)

    @precondition(lambda self: any(len(known.leases) > 1 for known in self.known.values()))
    @rule(data=st.data())
    def append_late(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from([k for k in self.known.values() if len(k.leases) > 1]))
        assert not self._append(known.leases[-2], token_event(known.tokens, "stale"))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if (known := self._running(data)) and known.ended is None:
            end = Terminal(RequestState.COMPLETED, Usage(1, known.tokens))
            for _ in range(2):
                assert self._append(known.leases[-1], TokenEvent(known.tokens, (), end))
            known.ended = RequestState.COMPLETED

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if (known := self._running(data)) and known.ended:
            assert known.claim is not None
            self.run_async(self.backend.transport.acknowledge([known.claim]))
            known.gone = True

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.known:
            known = data.draw(st.sampled_from(list(self.known.values())))
            before = self.run_async(self.backend.token_log.close(known.request.id))
            assert before is not None
            self.run_async(self.backend.transport.discard(known.ticket))
            known.ended = known.ended or RequestState.CANCELLED
            known.gone = known.gone or known.claim is None

    @invariant()
    def counts_are_true(self) -> None:
        depth = self.run_async(self.backend.transport.depth(MODEL))
        waiting = sum(known.claim is None and not known.gone for known in self.known.values())
        held = sum(known.claim is not None and not known.gone for known in self.known.values())
        assert (depth.waiting, depth.held, depth.waiting_tokens > 0) == (waiting, held, waiting > 0)

    def _hold(self, worker: str, found: list[Any], attempt: int | None) -> None:
        for item in found:
            assert isinstance(item, Delivery)
            assert attempt in (None, item.attempt)
            known = self.known[item.request.id]
            known.claim = item.claim
            [lease] = self.run_async(self.backend.token_log.acquire([item.request.id], worker))
            assert (lease is None) is (known.ended is not None)
            if lease is None:
                self.run_async(self.backend.transport.acknowledge([item.claim]))
                known.gone = True
            else:
                assert lease.next_seq == known.tokens
                known.leases.append(lease)

    def _running(self, data: st.DataObject) -> Known | None:
        running = [known for known in self.known.values() if known.leases and not known.gone]
        return data.draw(st.sampled_from(running)) if running else None

    def _append(self, lease: Lease, event: TokenEvent) -> bool:
        [written] = self.run_async(self.backend.token_log.append([Append(lease, event, 1)]))
        return written

    def _check_answer(self, known: Known) -> None:
        if known.ended is None:
            self.run_async(self.backend.token_log.close(known.request.id))
        events = self.run_async(asyncio.wait_for(answer(self.backend, known.request.id), LIMIT_S))
        assert [event.seq + i for event in events for i in range(event.count)] == list(range(known.tokens + 1))
        assert {token.text for event in events for token in event.tokens} <= {"x"}
        assert [event.terminal is not None for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "memory"])
def test_any_history_leaves_a_gapless_answer_and_exact_counts(kind: str, settings: Settings) -> None:
    bounds = {"lease": LEASE, "queue_depth": 1000, "tenant_queue_depth": 1000}
    config = settings.model_copy(update=bounds)
    machine = type("Histories", (Histories,), {"kind": kind, "config": config})
    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=HISTORIES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
