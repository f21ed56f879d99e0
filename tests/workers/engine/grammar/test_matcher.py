"""The engine follows a matcher, which is rebuilt from the logged tokens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from shared.errors import EngineFailed
from shared.protocol import FinishReason, SamplingParams
from tests.support.engine_driver import drain, load
from workers.engine.interface import EngineRequest

PROMPT = tuple(b"a river runs to the mill, and the mill ")
PARAMS = SamplingParams(temperature=1.5, seed=11, n=2, max_tokens=30, logprobs=2, presence_penalty=0.3)


class Parities:
    """Matcher that accepts odd and even token ids alternately, odd first, at most `most`."""

    def __init__(self, most: int = 20) -> None:
        self._most = most
        self._accepted = 0

    @property
    def finished(self) -> bool:
        return self._accepted == self._most

    def accept(self, token_id: int) -> bool:
        self._accepted += 1
        return token_id % 2 == self._accepted % 2

    def fill(self, bitmask: torch.Tensor, row: int) -> None:
        bitmask[row] = -0x55555556 if self._accepted % 2 == 0 else 0x55555555  # odd bits, even bits


def test_answers_follow_the_grammar_and_end_with_it(llama: Path) -> None:
    engine = load(llama)
    engine.add(EngineRequest("r", PROMPT, PARAMS, matcher=Parities))
    engine.add(EngineRequest("free", PROMPT, PARAMS))
    answers = drain(engine)
    for choice in range(2):
        ids = answers.ids("r", choice)
        assert [i % 2 for i in ids] == [1 - position % 2 for position in range(len(ids))]
        assert answers.reason("r", choice) is FinishReason.STOP
    assert answers.ids("r", 0) != answers.ids("r", 1)
    assert len(answers.ids("r", 0)) == 20
    assert len({i % 2 for i in answers.ids("free")[::2]}) == 2, "the neighbour is not constrained"


@pytest.mark.parametrize("done", [1, 2, 7, 19])
def test_resumed_run_equals_an_uninterrupted_one(llama: Path, done: int) -> None:
    engine = load(llama)
    engine.add(EngineRequest("whole", PROMPT, PARAMS, matcher=Parities))
    whole = drain(engine)
    resumed = tuple(tuple(whole.ids("whole", c)[: done + c]) for c in range(2))
    engine.add(EngineRequest("rest", PROMPT, PARAMS, resumed, matcher=Parities))
    rest = drain(engine)
    for choice in range(2):
        expected = whole.tokens["whole", choice][done + choice :]
        got = rest.tokens["rest", choice]
        assert [(t.id, t.text, t.finish_reason) for t in got] == [(t.id, t.text, t.finish_reason) for t in expected]


def test_logged_token_that_does_not_fit_is_an_error(llama: Path) -> None:
    engine = load(llama)
    with pytest.raises(EngineFailed, match="grammar"):
        engine.add(EngineRequest("r", PROMPT, PARAMS, ((2,), ()), matcher=Parities))
    assert not engine.has_work()


@pytest.mark.parametrize("method", ["fill", "accept"])
def test_matcher_that_raises_ends_only_its_request(llama: Path, method: str) -> None:
    class Raising(Parities):
        def fill(self, bitmask: torch.Tensor, row: int) -> None:
            if method == "fill":
                raise KeyError
            super().fill(bitmask, row)

        def accept(self, token_id: int) -> bool:
            raise KeyError

    engine = load(llama)
    engine.add(EngineRequest("good", PROMPT, msgspec.structs.replace(PARAMS, n=1)))
    good = drain(engine).ids("good")
    for name, matcher in (("before", None), ("bad", Raising), ("after", None)):
        engine.add(EngineRequest(name, PROMPT, msgspec.structs.replace(PARAMS, n=1), matcher=matcher))
    answers = drain(engine)
    assert isinstance(answers.errors["bad"], EngineFailed)
    assert answers.ids("before") == answers.ids("after") == good


def test_contradictory_matcher_ends_only_its_request(llama: Path) -> None:
    class Broken(Parities):
        def fill(self, bitmask: torch.Tensor, row: int) -> None:
            bitmask[row] = -1

        def accept(self, token_id: int) -> bool:
            return False

    engine = load(llama)
    engine.add(EngineRequest("bad", PROMPT, PARAMS, matcher=Broken))
    engine.add(EngineRequest("good", PROMPT, msgspec.structs.replace(PARAMS, n=1)))
    answers = drain(engine)
    assert isinstance(answers.errors["bad"], EngineFailed)
    assert answers.reason("good") is not None
