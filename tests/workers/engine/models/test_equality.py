"""Greedy answers equal those of transformers' generate, token for token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from shared.protocol import Message, SamplingParams
from tests.support.checkpoints import CONFIGS, SHAPE, hf_agrees, hf_greedy, hf_model, random_prompts
from tests.support.engine_driver import GREEDY, drain, load, run
from workers.engine.interface import EngineRequest

MAX_TOKENS = 24
EOS = SHAPE["eos_token_id"]
VARIED = (
    "mistral",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen3-moe",
    "gpt-oss",
)  # with windows, soft caps, experts or sinks


@pytest.fixture(scope="module")
def expected(checkpoints: Callable[[str], Path]) -> Callable[[str, int], list[list[int]]]:
    """Return transformers' answers to `random_prompts(32)[:count]`, each computed once."""
    models = cache(lambda name: hf_model(checkpoints(name)))
    answer = cache(lambda name, i: hf_greedy(models(name), random_prompts(32)[i], MAX_TOKENS))

    def answers(name: str, count: int) -> list[list[int]]:
        return [answer(name, i) for i in range(count)]

    return answers


@pytest.fixture(scope="module")
def check_greedy(checkpoints: Callable[[str], Path]) -> Callable[[str, list[list[int]]], None]:
    """Check answers to the first of `random_prompts(32)` against transformers, each different answer once."""
    models = cache(lambda name: hf_model(checkpoints(name)))
    agrees = cache(lambda name, i, answer: hf_agrees(models(name), random_prompts(32)[i], list(answer)))

    def check(name: str, answers: list[list[int]]) -> None:
        for i, answer in enumerate(answers):
            assert EOS not in answer[:-1]
            assert len(answer) == MAX_TOKENS or answer[-1] == EOS
            assert agrees(name, i, tuple(answer))

    return check


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "kernels",
    [pytest.param({}, id="compiled"), pytest.param({"cache_dir": None}, id="plain", marks=pytest.mark.slow)],
)
def test_every_architecture_matches_transformers(
    name: str,
    kernels: dict[str, None],
    checkpoints: Callable[[str], Path],
    check_greedy: Callable[[str, list[list[int]]], None],
) -> None:
    engine = load(checkpoints(name), max_num_batched_tokens=48, **kernels)
    answers = run(engine, random_prompts(32)[:12])
    assert len(answers) == 12
    check_greedy(name, answers)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("batch", "budget"),
    [  # a budget of 1 is a batch of 1
        *((7, 1), (7, 16), (32, 256)),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1), (1, 16), (32, 16), (1, 256), (7, 256))),
    ],
)
@pytest.mark.parametrize("blocks", [None, 24])
def test_answers_do_not_depend_on_batch_budget_or_blocks(
    name: str,
    batch: int,
    budget: int,
    blocks: int | None,
    checkpoints: Callable[[str], Path],
    check_greedy: Callable[[str, list[list[int]]], None],
) -> None:
    """A pool of `blocks` blocks of 4 holds one or two of the sequences."""
    small = {} if blocks is None else {"num_kv_blocks": blocks, "block_size": 4, "max_model_len": 96}
    engine = load(checkpoints(name), max_num_batched_tokens=budget, **small)
    answers = run(engine, random_prompts(32)[:batch])
    assert len(answers) == batch
    check_greedy(name, answers)


def test_preempted_sequences_give_the_same_answers(checkpoints: Callable[[str], Path]) -> None:
    """Given a pool for two whole sequences and eight that start, some are preempted; the answers are the same."""
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    short = [prompt[:6] for prompt in random_prompts(8)]
    roomy = run(load(checkpoints("llama")), short, params)
    engine = load(checkpoints("llama"), num_kv_blocks=36, block_size=4, max_num_batched_tokens=16)
    assert run(engine, short, params) == roomy
    assert engine.stats().preemptions > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIED)
def test_varied_layers_do_not_depend_on_batch_budget_or_blocks(
    name: str, checkpoints: Callable[[str], Path], expected: Callable[[str, int], list[list[int]]]
) -> None:
    """Nor does an answer that another engine has begun: given its first tokens, the rest is the same."""
    scarce = {"num_kv_blocks": 24, "block_size": 4, "max_model_len": 96}
    for batch, budget, pool in ((1, 1, {}), (7, 16, scarce), (32, 256, {})):
        engine = load(checkpoints(name), max_num_batched_tokens=budget, **pool)
        assert run(engine, random_prompts(32)[:batch]) == expected(name, batch)
        assert not pool or engine.stats().preemptions > 0
    whole = expected(name, 7)
    for index, (prompt, answer) in enumerate(zip(random_prompts(32), whole, strict=False)):
        engine.add(EngineRequest(str(index), tuple(prompt), GREEDY, (tuple(answer[:9]),)))
    answers = drain(engine)
    assert [answers.ids(str(index)) for index in range(7)] == [answer[9:] for answer in whole]


@pytest.mark.slow
def test_smollm2_matches_transformers_on_real_prompts(smollm2: Path) -> None:
    questions = [
        "What is the capital of France?",
        "Write a haiku about rivers.",
        "Translate 'good morning' to Spanish.",
        "What is 12 times 12?",
        "Name the planets.",
        "¿Qué hora es? Answer in Spanish, with emojis 🙂.",
    ]
    engine = load(smollm2, num_kv_blocks=200, max_model_len=512)
    chats = [engine.tokenizer.encode_chat([Message("user", question)]) for question in questions]
    model = hf_model(smollm2)
    answers = run(engine, chats, GREEDY)
    eos = model.generation_config.eos_token_id
    for chat, answer in zip(chats, answers, strict=True):
        assert len(answer) == MAX_TOKENS or answer[-1] == eos
        assert eos not in answer[:-1]
        assert hf_agrees(model, chat, answer)
