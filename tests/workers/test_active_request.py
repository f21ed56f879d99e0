"""Appends that follow from the outputs of the engine."""

from __future__ import annotations

from shared.protocol import FinishReason, PriorityClass, Token
from shared.queue.interface import Claim, Delivery
from shared.token_log.interface import Lease
from tests.support.fakes import MODEL, make_request
from workers.active_request import MARK_INTERVAL_S, ActiveRequest, merge_by_run
from workers.engine.interface import EngineOutput
from workers.engine.waits import EngineWaits

FIRST, SECOND, LAST = Token(0, 1, "a"), Token(0, 2, "b"), Token(0, 3, "c", FinishReason.STOP)
EARLY, LATE = EngineWaits(1.0), EngineWaits(1.0, 1, 0.5)


def test_the_outputs_of_several_steps_become_one_for_each_run() -> None:
    other = EngineOutput("s", (FIRST,))
    steps = [
        EngineOutput("r", (FIRST,), prompt=(SECOND,), cached_tokens=4, waits=EARLY),
        other,
        EngineOutput("r", (SECOND,), waits=LATE),
        EngineOutput("r", (LAST,), finished=True),
    ]
    merged = EngineOutput("r", (FIRST, SECOND, LAST), True, None, (SECOND,), 4, waits=LATE)
    assert merge_by_run(steps) == [merged, other]
    assert merge_by_run(steps[:2]) == steps[:2]


def test_an_append_is_plain_if_nothing_but_tokens_is_new() -> None:
    request = make_request(max_tokens=9, n=2)
    delivery = Delivery(request, Claim(request.id, MODEL, PriorityClass.STANDARD, "1-0"), 1)
    active = ActiveRequest(delivery, Lease(request.id, "a", 1, 0.0))
    at, found = 0.0, []
    for tokens, seconds, finished in (
        ((FIRST,), 0.0, False),
        ((FIRST, SECOND), 0.0, False),
        ((FIRST,), MARK_INTERVAL_S, False),
        ((FIRST, LAST), 0.0, False),
        ((FIRST,), 0.0, False),
        ((FIRST,), 0.0, True),
    ):
        at += seconds
        append = active.append(EngineOutput("r", tokens, finished), at)
        found.append((append.plain, append.mark is not None, append.ends))
    assert found == [
        (False, True, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, False),
        (False, False, True),
    ]
