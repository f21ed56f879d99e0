"""Guarantees of an engine: sampling, resumption, cancellation, refusals, isolated failures."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import ContextLengthExceeded, EngineFailed, InvalidRequest
from shared.protocol import FinishReason, Message, PriorityClass, SamplingParams, Structured
from tests.support.checkpoints import edit_config
from tests.support.engine_driver import Answers, drain, load, run, step
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec, EngineRequest
from workers.engine.models import checkpoint
from workers.engine.models.stored import interface

SAMPLED = SamplingParams(
    temperature=1.3, top_p=0.95, top_k=200, repetition_penalty=1.1, presence_penalty=0.2, seed=7, max_tokens=20
)
PROMPT = tuple(b"a river runs to the mill, and the mill ")


@pytest.fixture(scope="module")
def engine(llama: Path) -> Engine:
    return load(llama)


def test_an_answer_cut_within_a_character_ends_before_it(engine: Engine) -> None:
    """Given a grammar of characters with two tokens each, also if the cut answer is resumed."""
    assert engine.constraints is not None
    grammar = engine.constraints.start(ConstraintSpec(Structured(regex="[à-ü]{3}"))).result(60).matcher
    for length in range(1, 6):
        params = SamplingParams(temperature=0.0, max_tokens=length, logprobs=1)
        engine.add(EngineRequest("r", PROMPT, params, matcher=grammar))
        whole = drain(engine)
        assert whole.reason("r") is FinishReason.LENGTH
        text = whole.text("r")
        assert (len(text), "\ufffd" in text) == (length // 2, False)
        resumed = (tuple(whole.ids("r")[:-1]),)
        engine.add(EngineRequest("r", PROMPT, params, resumed, matcher=grammar))
        assert drain(engine).text("r") == (text[-1:] if length % 2 == 0 else "")


def test_seeded_answer_is_the_same_alone_and_in_a_batch(llama: Path, engine: Engine) -> None:
    alone = run(engine, [list(PROMPT)], SAMPLED)[0]
    rng = random.Random(1)
    crowd = load(llama, max_num_batched_tokens=13, block_size=4, num_kv_blocks=60)
    for i in range(20):
        other = tuple(rng.randrange(256) for _ in range(rng.randint(1, 50)))
        crowd.add(EngineRequest(f"other-{i}", other, msgspec.structs.replace(SAMPLED, seed=i)))
    crowd.add(EngineRequest("mine", PROMPT, SAMPLED))
    answers = drain(crowd)
    assert answers.ids("mine") == alone
    assert answers.ids("other-3") != answers.ids("other-4")


def test_choices_differ_and_do_not_depend_on_preemption(llama: Path) -> None:
    """Given n = 4, the choices share the prompt, differ, and are the same in a pool that forces preemption."""
    params = msgspec.structs.replace(SAMPLED, n=4)
    by_room = []
    for blocks in (256, 24):
        engine = load(llama, num_kv_blocks=blocks, block_size=4, max_num_batched_tokens=16)
        engine.add(EngineRequest("r", PROMPT, params))
        answers = drain(engine)
        by_room.append([answers.ids("r", choice) for choice in range(4)])
    assert by_room[0] == by_room[1]
    assert engine.stats().preemptions > 0
    assert len({tuple(ids) for ids in by_room[0]}) == 4


def test_choices_of_a_prompt_of_one_token(llama: Path) -> None:
    engine = load(llama)
    engine.add(EngineRequest("r", PROMPT[:1], msgspec.structs.replace(SAMPLED, n=3)))
    answers = drain(engine)
    assert len({tuple(answers.ids("r", choice)) for choice in range(3)}) == 3


def test_choices_share_the_blocks_of_the_prompt(llama: Path) -> None:
    engine = load(llama, block_size=4)
    engine.add(EngineRequest("r", PROMPT, msgspec.structs.replace(SAMPLED, n=8)))
    answers = Answers()
    for _ in range(3):
        step(engine, answers)
    assert engine.stats().running == 8
    assert engine.stats().blocks_used <= len(PROMPT) // 4 + 8 * 2
    drain(engine)


@pytest.mark.parametrize("stop", [(), ("Ã¼", "\u00e9\u00e8", "zq")])
def test_resumed_answer_has_the_same_tokens_and_text(engine: Engine, stop: tuple[str, ...]) -> None:
    """For every number of earlier tokens, including the middle of a character or of a stop string."""
    params = msgspec.structs.replace(SAMPLED, stop=stop, n=2, max_tokens=24, temperature=2.0, top_k=0, top_p=1.0)
    engine.add(EngineRequest("whole", PROMPT, params))
    whole = drain(engine).tokens
    for done in range(1, 25):
        resumed = tuple(tuple(t.id for t in whole["whole", c][:done]) for c in range(2))
        engine.add(EngineRequest(f"rest-{done}", PROMPT, params, resumed))
        rest = drain(engine)
        assert rest.finished == {f"rest-{done}"}
        for choice in range(2):
            assert rest.tokens[f"rest-{done}", choice] == whole["whole", choice][done:]


def test_choices_resumed_at_different_lengths(engine: Engine) -> None:
    params = msgspec.structs.replace(SAMPLED, n=3)
    engine.add(EngineRequest("whole", PROMPT, params))
    whole = drain(engine).tokens
    done = (5, 0, len(whole["whole", 2]))  # the last one is complete
    resumed = tuple(tuple(t.id for t in whole["whole", c][: done[c]]) for c in range(3))
    engine.add(EngineRequest("rest", PROMPT, params, resumed))
    rest = drain(engine).tokens
    assert [rest["rest", c] for c in range(3)] == [whole["whole", c][done[c] :] for c in range(3)]


def test_complete_answer_that_is_resumed_ends_at_once(engine: Engine) -> None:
    ids = tuple(run(engine, [list(PROMPT)], SAMPLED)[0])
    engine.add(EngineRequest("r", PROMPT, SAMPLED, (ids,)))
    answers = drain(engine)
    assert answers.finished == {"r"}
    assert answers.ids("r") == []


def test_answer_ends_before_a_stop_string(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    engine.add(EngineRequest("free", PROMPT, params))
    text = drain(engine).text("free")
    stop = text[len(text) // 2 :][:3]
    engine.add(EngineRequest("r", PROMPT, msgspec.structs.replace(params, stop=("never", stop))))
    answers = drain(engine)
    assert answers.text("r") == text[: text.index(stop)]
    assert answers.reason("r") is FinishReason.STOP


def test_end_of_text_ends_the_answer_unless_ignored(llama: Path, tmp_path: Path) -> None:
    """Given an end-of-text token in a greedy answer, the answer ends there; with ignore_eos it continues."""
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    params = SamplingParams(temperature=0.0, max_tokens=10)
    ids = run(load(llama), [list(PROMPT)], params)[0]
    end = ids[4]
    path = folder / "generation_config.json"
    path.write_text(f'{{"eos_token_id": [999, {end}]}}')
    engine = load(folder)
    assert run(engine, [list(PROMPT)], params)[0] == ids[: ids.index(end) + 1]
    assert run(engine, [list(PROMPT)], msgspec.structs.replace(params, ignore_eos=True))[0] == ids


def test_without_max_tokens_an_answer_fills_the_context(llama: Path) -> None:
    engine = load(llama, max_model_len=48)
    engine.add(EngineRequest("r", PROMPT, SamplingParams(temperature=0.0, ignore_eos=True)))
    answers = drain(engine)
    assert len(answers.ids("r")) == 48 - len(PROMPT)
    assert answers.reason("r") is FinishReason.LENGTH


def test_abort_frees_blocks_at_once(llama: Path) -> None:
    engine = load(llama, max_num_seqs=2)
    for name in ("a", "b", "c"):
        engine.add(EngineRequest(name, PROMPT, SAMPLED))
    engine.step()
    used = engine.stats().blocks_used
    assert engine.abort("a")
    assert engine.stats().blocks_used < used
    assert engine.abort("c"), "waiting requests can be aborted too"
    assert not engine.abort("a")
    assert drain(engine).finished == {"b"}


@pytest.mark.slow
def test_random_operations_keep_answers_and_blocks_intact(llama: Path) -> None:
    """Given 1,000 random operations with requests of all classes and several tenants whose prompts begin alike,
    every answer is a prefix of the one computed alone, and no block is lost.
    """
    rng = random.Random(3)
    cases = []
    stem = tuple(rng.randrange(256) for _ in range(12))
    for i in range(24):
        prompt = stem[: i % 4 * 4] + tuple(rng.randrange(256) for _ in range(rng.randint(1, 18)))
        cases.append((prompt, SamplingParams(temperature=i % 3 * 0.7, seed=i, n=1 + i % 3, max_tokens=12)))
    alone: list[Answers] = []
    roomy = load(llama)
    for prompt, params in cases:
        roomy.add(EngineRequest("r", prompt, params))
        alone.append(drain(roomy))
    engine = load(llama, num_kv_blocks=30, block_size=4, max_num_batched_tokens=20, max_num_seqs=6)
    answers, case_of, live = Answers(), {}, set()
    for operation in range(1000):
        kind = rng.random()
        if kind < 0.25 and len(live) < 40:
            name, case = f"r{operation}", rng.randrange(len(cases))
            priority = rng.choice(list(PriorityClass))
            tenant = f"tenant-{case % 3}"
            salt = tenant.encode()
            engine.add(EngineRequest(name, *cases[case], priority=priority, tenant=tenant, prefix_salt=salt))
            case_of[name] = case
            live.add(name)
        elif kind < 0.3 and live:
            gone = rng.choice(sorted(live))
            assert engine.abort(gone)
            live.remove(gone)
        else:
            step(engine, answers)
            live -= answers.finished
    while engine.has_work():
        step(engine, answers)
    assert engine.stats().blocks_used == 0
    assert engine.stats().preemptions > 20
    assert engine.stats().prefix_hits > 1000
    assert len(answers.finished) > 100
    for (name, choice), tokens in answers.tokens.items():
        full = alone[case_of[name]].tokens["r", choice]
        assert tokens == (full if name in answers.finished else full[: len(tokens)])


def test_request_with_nan_logits_ends_alone(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given NaN for one token, its request fails, and later users of its blocks do not.

    Weights with NaN are refused, so the check is left out: arithmetic may still give NaN.
    """
    monkeypatch.setattr(checkpoint, "refuse_infinite", lambda *_: None)
    monkeypatch.setattr(interface, "refuse_infinite", lambda *_: None)
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    good = run(load(llama), [list(PROMPT)], SAMPLED)[0]
    assert 3 not in good
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, tie_word_embeddings=False)
    engine = load(folder, num_kv_blocks=16, block_size=8)
    engine._runner._model.embedding[3] = torch.nan  # a checkpoint with NaN is refused
    engine.add(EngineRequest("bad", (*PROMPT, 3, 4), msgspec.structs.replace(SAMPLED, n=2)))
    engine.add(EngineRequest("good", PROMPT, SAMPLED))
    answers = drain(engine)
    assert isinstance(answers.errors["bad"], EngineFailed)
    assert answers.finished == {"bad", "good"}
    assert answers.ids("good") == good
    assert run(engine, [list(PROMPT)] * 3, SAMPLED) == [good] * 3


def test_failing_step_ends_only_the_request_at_fault(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(llama)
    good = run(engine, [list(PROMPT)], SAMPLED)[0]
    compute = engine._runner.run

    def failing(batch, interrupted):
        if any(item.sequence.job_id == "bad" for item in batch.items):
            raise RuntimeError("out of memory")
        return compute(batch, interrupted)

    monkeypatch.setattr(engine._runner, "run", failing)
    for name in ("a", "bad", "b"):
        engine.add(EngineRequest(name, PROMPT, SAMPLED))
    answers = drain(engine)
    assert set(answers.errors) == {"bad"}
    assert answers.ids("a") == answers.ids("b") == good


def test_model_that_computes_nothing_fails_the_engine(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given several requests that fail together and alone, the failure is the engine's, not theirs."""
    engine = load(llama)

    def failing(batch, interrupted):
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine._runner, "run", failing)
    engine.add(EngineRequest("alone", PROMPT, SAMPLED))
    assert isinstance(drain(engine).errors["alone"], EngineFailed)
    for name in ("a", "b"):
        engine.add(EngineRequest(name, PROMPT, SAMPLED))
    with pytest.raises(EngineFailed, match="could not compute"):
        engine.step()


def test_request_that_cannot_finish_is_refused(llama: Path) -> None:
    engine = load(llama, num_kv_blocks=4, block_size=16)
    assert engine.max_model_len == 64
    with pytest.raises(ContextLengthExceeded, match=r"64 tokens, but the prompt has 64") as error:
        engine.add(EngineRequest("r", (1,) * 64, SamplingParams()))
    assert error.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="token 272 is outside the vocabulary"):
        engine.add(EngineRequest("r", (1, 272), SamplingParams()))
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.add(EngineRequest("r", (), SamplingParams()))
    with pytest.raises(InvalidRequest, match="n must be at most 32"):
        engine.add(EngineRequest("r", (1,), SamplingParams(n=33)))
    assert not engine.has_work()


def test_request_as_large_as_the_pool_finishes(llama: Path) -> None:
    engine = load(llama, num_kv_blocks=4, block_size=16)
    for name in ("a", "b"):
        engine.add(EngineRequest(name, (5,) * 24, SamplingParams(max_tokens=40, ignore_eos=True)))
    answers = drain(engine)
    assert [len(answers.ids(name)) for name in ("a", "b")] == [40, 40]


def test_long_prompt_does_not_stall_running_answers(llama: Path) -> None:
    engine = load(llama, max_num_batched_tokens=16)
    engine.add(EngineRequest("first", (1,), SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)))
    answers = Answers()
    step(engine, answers)
    engine.add(EngineRequest("long", (2,) * 300, SamplingParams(temperature=0, max_tokens=2)))
    for count in range(2, 22):
        step(engine, answers)
        assert len(answers.ids("first")) == count


def test_chat_is_rendered_with_the_models_template(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    ids = tokenizer.encode_chat([Message("user", "hé")])
    assert tokenizer.decode(ids) == "user:héassistant:"
    assert ids.count(256) == 2
    with pytest.raises(InvalidRequest, match="system goes first") as error:
        tokenizer.encode_chat([Message("user", "x"), Message("system", "y")])
    assert error.value.param == "messages"
    assert tokenizer.encode("ab") == tokenizer.encode("ab")


def test_chat_without_a_template_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidRequest, match="no chat template"):
        load(folder).tokenizer.encode_chat([Message("user", "x")])
