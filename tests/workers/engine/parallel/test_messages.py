"""Messages between ranks."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import torch

from tests.support.paged_steps import make_step
from workers.engine.parallel.messages import Capacity, Channel, Loaded, Refused
from workers.engine.parallel.step_message import Step


def test_a_step_arrives_as_it_was_sent() -> None:
    inputs = make_step([(0, 5), (7, 1), (3, 2)], 4, 16)
    inputs = replace(inputs, tokens=torch.arange(8), sample_rows=torch.tensor([4, 5]))
    for copies in ([], [(3, 9), (1, 2)]):
        found = Step.decode(bytearray(Step(copies, inputs).encode()))
        assert (found.copies, found.inputs.spans) == (copies, inputs.spans)
        for name in ("tokens", "positions", "sequences", "block_tables", "sample_rows"):
            assert torch.equal(getattr(found.inputs, name), getattr(inputs, name)), name


def test_a_refusal_is_told_from_the_expected_message() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    for message in (Loaded(), Refused("no room", "kv_cache_gib"), Capacity(7)):
        theirs.send(message)
    assert ours.receive(Loaded) == Loaded()
    assert ours.receive(Loaded) == Refused("no room", "kv_cache_gib")
    assert ours.receive(Capacity) == Capacity(7)
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive(Loaded)
    ours.close()
