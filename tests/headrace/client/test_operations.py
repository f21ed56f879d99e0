"""Operations on an item: its id is one segment of the path, whatever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.client.operations import Operations
from headrace.client.sans_io import Flow, Replicas, Send
from shared.errors import ConfigError

OPERATIONS: dict[str, Callable[[Operations, str], Flow[object]]] = {
    "job": Operations.job,
    "timeline": Operations.timeline,
    "recording": Operations.recording,
    "cancel": Operations.cancel,
    "result": Operations.result,
    "events": lambda operations, job_id: operations.events(job_id, -1),
    "dead letter": Operations.dead_letter,
    "replay": lambda operations, letter_id: operations.replay(letter_id, None),
    "remove": Operations.remove,
    "asleep": lambda operations, model: operations.set_asleep(model, asleep=True),
}


@pytest.fixture
def operations() -> Operations:
    return Operations(Replicas(["http://api"]), 1.0, lambda: 0.0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_id_leads_to_no_other_path(operations: Operations, name: str) -> None:
    for wrong, part in (("..", "%2E%2E"), ("a/../b?c#d", "a%2F..%2Fb%3Fc%23d"), ("a\udcff", "a%FF")):
        sent = next(OPERATIONS[name](operations, wrong))
        assert isinstance(sent, Send)
        assert part in sent.url.split("/")
    with pytest.raises(ConfigError, match="must not be empty"):
        next(OPERATIONS[name](operations, ""))
