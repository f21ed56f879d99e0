"""The speculator drafts where it pays, within the budget and the free blocks, and counts what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from shared.errors import InvalidRequest
from shared.protocol import PriorityClass, SamplingParams
from tests.support.drafters import LinearCosts, Oracle, speculate
from tests.support.engine_driver import Answers, drain, load, step
from tests.support.scheduler_driver import compute, make_scheduler, make_sequence
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft
from workers.engine.speculation.speculator import Speculator
from workers.engine.speculation.step_costs import FORGET_AFTER_STEPS, ROWS_OF_WEIGHTS, StepCosts
from workers.engine.stats import SpeculationStats

PROMPT = tuple(b"water to the mill ")
GREEDY = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(llama: Path) -> Engine:
    return load(llama)


@pytest.fixture(scope="module")
def answer(engine: Engine) -> list[int]:
    engine.speculator = None
    return generate(engine).ids("r")


def generate(engine: Engine, count: int = 1) -> Answers:
    for number in range(count):
        engine.add(EngineRequest("r" if number == 0 else f"r{number}", PROMPT, GREEDY))
    return drain(engine)


def test_a_right_draft_gives_its_tokens_in_one_step(engine: Engine, answer: list[int]) -> None:
    speculator = speculate(engine, Oracle({("r", 0): answer}, shortest=6))
    engine.add(EngineRequest("r", PROMPT, GREEDY))
    answers = Answers()
    steps = 0
    while engine.has_work():
        step(engine, answers)
        steps += 1
    assert answers.ids("r") == answer
    assert steps == 1 + 7  # the prompt with the first token, then 7 tokens each, the last one with the rest
    assert speculator.stats() == SpeculationStats(7, 40, (7, 7, 7, 7, 6, 6))


def test_wrong_drafts_stop_where_rows_cost_time(engine: Engine, answer: list[int]) -> None:
    speculator = speculate(engine, Oracle({("r", 0): answer}, wrong=1.0), costs=LinearCosts(0.2))
    assert generate(engine).ids("r") == answer
    assert speculator.stats().draft_tokens < 10


def test_right_drafts_stay_out_where_rows_cost_a_step_each(engine: Engine, answer: list[int]) -> None:
    speculator = speculate(engine, Oracle({("r", 0): answer}), costs=LinearCosts(1.0))
    assert generate(engine).ids("r") == answer
    assert speculator.stats().draft_tokens == 0


def test_a_drafter_that_becomes_right_is_noticed(engine: Engine, answer: list[int]) -> None:
    """Given a drafter whose drafts are wrong for half of the answer, and so are no longer computed."""
    late = {("r", 0): [0] * 24 + answer[24:]}
    speculator = speculate(engine, Oracle(late), costs=LinearCosts(0.3))
    assert generate(engine).ids("r") == answer
    assert sum(speculator.stats().accepted) > 8


def test_steps_that_compute_prompts_and_wide_steps_draft_nothing(engine: Engine, answer: list[int]) -> None:
    costs = LinearCosts()
    speculator = speculate(engine, Oracle({("r", 0): answer}), costs=costs)
    engine.add(EngineRequest("r", PROMPT, GREEDY))
    engine.step()
    assert (speculator.stats().drafts, costs.recorded) == (0, [])
    engine.step()
    engine.add(EngineRequest("other", PROMPT[1:], GREEDY))
    drafts = speculator.stats().drafts
    engine.step()
    assert speculator.stats().drafts == drafts == 1
    for name in ("r", "other"):
        engine.abort(name)


def test_a_drafter_that_fails_ends_no_request(engine: Engine, answer: list[int]) -> None:
    class Broken(Oracle):
        def propose(self, sequence: Sequence, most: int) -> Draft | None:
            self.proposed += 1
            raise KeyError("draft")

    broken = Broken({})
    speculate(engine, broken)
    assert generate(engine).ids("r") == answer
    assert broken.proposed == 1, "it is not asked again"


def test_an_abandoned_step_keeps_no_blocks_of_drafts(engine: Engine, answer: list[int]) -> None:
    speculate(engine, Oracle({("r", 0): answer}, shortest=20), most=20)
    engine.add(EngineRequest("r", PROMPT, GREEDY, priority=PriorityClass.BATCH))
    answers, urgent = Answers(), False
    engine.abandon_when(lambda: urgent)
    step(engine, answers)
    used = engine.stats().blocks_used
    urgent = True
    step(engine, answers)
    assert (engine.stats().batch_tokens, engine.stats().blocks_used) == (21, used)
    assert len(answers.ids("r")) == 1
    urgent = False
    while engine.has_work():
        step(engine, answers)
    assert answers.ids("r") == answer


class Failing:
    """Matcher that allows every token, and fails after some of them."""

    finished = False

    def __init__(self, after: int) -> None:
        self._left = after

    def accept(self, token_id: int) -> bool:
        self._left -= 1
        return True

    def fill(self, bitmask: Tensor, row: int) -> None:
        if not self._left:
            raise InvalidRequest("the grammar is too complex")
        bitmask[row].fill_(-1)

    def forced_tokens(self) -> list[int]:
        return []


def test_a_failure_after_a_draft_ends_its_request_alone(engine: Engine, answer: list[int]) -> None:
    """Given a grammar that fails where four of six drafted tokens are accepted."""
    speculate(engine, Oracle({("r", 0): answer, ("bad", 0): answer}, shortest=6))
    engine.add(EngineRequest("r", PROMPT, GREEDY))
    engine.add(EngineRequest("bad", PROMPT, GREEDY, matcher=lambda: Failing(after=5)))
    answers = drain(engine)
    assert answers.ids("r") == answer
    assert answers.ids("bad") == answer[:5], "the tokens before the failure are kept"
    assert answers.errors["bad"].message == "the grammar is too complex"
    assert set(answers.errors) == {"bad"}


def test_drafts_take_only_free_blocks_and_give_them_back() -> None:
    scheduler = make_scheduler(blocks=5, budget=64)  # of 4 tokens each
    first, second = make_sequence(0, 8), make_sequence(1, 7)
    for sequence in (first, second):
        scheduler.add(sequence)
    compute(scheduler)
    batch = scheduler.schedule()  # 9 and 8 tokens: 3 and 2 blocks
    batch = scheduler.add_drafts(batch, {first: (1,) * 10, second: (1,) * 10})
    assert [item.drafts for item in batch.items] == [(1,) * 3, ()]
    scheduler.advance(batch)
    scheduler.end_drafts(batch)
    assert [len(sequence.block_table) for sequence in (first, second)] == [3, 2]


def test_drafts_stay_within_the_budget_of_a_step() -> None:
    scheduler = make_scheduler(budget=9)
    sequences = [make_sequence(number, 2) for number in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    compute(scheduler)
    batch = scheduler.add_drafts(scheduler.schedule(), dict.fromkeys(sequences, (1,) * 4))
    assert [len(item.drafts) for item in batch.items] == [4, 2, 0]
    assert batch.num_rows == 9
    scheduler.end_drafts(batch)
    assert all(len(sequence.block_table) == 1 for sequence in sequences)


def test_costs_are_medians_and_guesses_between_and_beyond() -> None:
    costs = StepCosts()
    assert costs.seconds(1) is None
    for seconds in (1.0, 9.0, 1.0):
        costs.record(1, seconds)
    assert costs.seconds(1) == 1.0
    assert costs.seconds(4) == (ROWS_OF_WEIGHTS + 4) / (ROWS_OF_WEIGHTS + 1)
    costs.record(5, 3.0)
    assert costs.seconds(3) == 2.0
    for _ in range(2 * FORGET_AFTER_STEPS):
        costs.record(1, 1.0)
    assert costs.seconds(5) == (ROWS_OF_WEIGHTS + 5) / (ROWS_OF_WEIGHTS + 1), "the old measurement is forgotten"


def test_speculation_is_off_where_it_would_change_bits(llama: Path) -> None:
    assert isinstance(load(llama, speculation="auto").speculator, Speculator)
    for settings in ({"speculation": "off"}, {"dtype": "bfloat16"}, {"cache_dir": None}):
        assert load(llama, **{"speculation": "auto", **settings}).speculator is None
