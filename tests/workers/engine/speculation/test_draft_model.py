"""A draft model proposes what it would draw itself, and never changes an answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec
import pytest
import torch

from shared.errors import ConfigError
from shared.protocol import SamplingParams
from tests.support.checkpoints import edit_config
from tests.support.drafters import LinearCosts, Oracle, speculate
from tests.support.engine_driver import drain, load, run
from tests.support.sequences import make_sequence
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.sequence import Sequence
from workers.engine.speculation.draft_model import DraftModel, load_draft_model
from workers.engine.speculation.interface import Draft

PROMPTS = [list(b"a stone by the river "), list(b"the mill " * 5), [7]]
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=30, repetition_penalty=1.2)


def draft_model(engine: Engine, folder: Path, **settings: object) -> DraftModel:
    config = EngineConfig(folder, draft_model=folder, max_num_batched_tokens=16, **settings)  # type: ignore[arg-type]  # any field
    found = load_draft_model(config, engine.tokenizer, 272, torch.float32, torch.device("cpu"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def engine(llama: Path) -> Engine:
    return load(llama)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_equal_model_is_always_right(engine: Engine, llama: Path, temperature: float) -> None:
    params = msgspec.structs.replace(SAMPLED, temperature=temperature)
    engine.speculator = None
    plain = run(engine, PROMPTS, params)
    model = draft_model(engine, llama)
    speculator = speculate(engine, model=model)
    assert run(engine, PROMPTS, params) == plain
    stats = speculator.stats()
    assert sum(stats.accepted) == stats.draft_tokens > 40
    assert model.blocks_used == 0


def test_another_model_changes_no_answer(engine: Engine, checkpoints: Callable[[str], Path]) -> None:
    """Given a cache of the draft model that holds only one of the answers at a time."""
    engine.speculator = None
    plain = run(engine, PROMPTS, SAMPLED)
    model = draft_model(
        engine, checkpoints("llama-linear"), block_size=8, kv_cache_gib=4 * 12 * 8 * 576 * 4 / 2**30
    )
    speculate(engine, model=model)
    assert run(engine, PROMPTS, SAMPLED) == plain


def test_wrong_tokens_of_a_draft_are_computed_again(engine: Engine, llama: Path) -> None:
    """Given answers that leave each draft at another place, drafts are those of a model without a past."""
    model = draft_model(engine, llama)
    sequence = make_sequence(SAMPLED, PROMPTS[0], [1])
    for kept in (6, 0, 3, 5, 1):
        draft = model.propose(sequence, 6)
        assert draft == draft_model(engine, llama).propose(make_sequence(SAMPLED, PROMPTS[0], output(sequence)), 6)
        assert draft is not None
        sequence.tokens += [*draft.tokens[:kept], 99, 98]  # the last ones came without the model


def output(sequence: Sequence) -> list[int]:
    return sequence.tokens[sequence.num_prompt_tokens :]


def test_a_slow_model_is_asked_only_now_and_then(engine: Engine, llama: Path) -> None:
    ticks = count(step=100)
    asked: list[int] = []
    model = draft_model(engine, llama)

    class Counted(Oracle):
        def propose(self, sequence: Sequence, most: int) -> Draft | None:
            asked.append(most)
            return model.propose(sequence, most)

    counted = Counted({})
    speculate(engine, model=counted, costs=LinearCosts(), clock=lambda: float(next(ticks)))
    engine.add(EngineRequest("r", (1, 2, 3), msgspec.structs.replace(SAMPLED, max_tokens=90, ignore_eos=True)))
    drain(engine)
    assert asked == [6, 2]


def test_a_model_that_cannot_draft_is_refused(llama: Path, tmp_path: Path) -> None:
    def error(folder: Path) -> str:
        with pytest.raises(ConfigError) as raised:
            load(llama, draft_model=folder)
        assert raised.value.param == "draft_model"
        return raised.value.message

    assert "is not a folder" in error(tmp_path / "absent")
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<bos>", "<start>"))
    (other / "tokenizer_config.json").write_text(
        (other / "tokenizer_config.json").read_text().replace("<bos>", "<start>")
    )
    assert "must have the vocabulary of the model" in error(other)
    wider = Path(shutil.copytree(llama, tmp_path / "wider"))
    edit_config(wider, vocab_size=280)
    assert "must have the vocabulary of the model" in error(wider)
