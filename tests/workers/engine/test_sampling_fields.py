"""vLLM's sampling fields in answers of an engine: what each does, however the answer is run."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.protocol import FinishReason, SamplingParams, Token
from tests.support.engine_driver import Answers, drain, load
from workers.engine import sequence_builder
from workers.engine.engine import Engine
from workers.engine.interface import EngineOutput, EngineRequest

PROMPT = tuple(b"a river runs to the mill, and the mill ")
EOS, BOS = 257, 256
WARM = SamplingParams(temperature=1.5, seed=5, n=2, max_tokens=14)
COMMON = tuple(range(0, 272, 9))  # tokens of which a warm answer has some within its first tokens
LETTERS = tuple(range(64, 90))

CASES: dict[str, dict[str, Any]] = {
    "min_tokens": {"min_tokens": 8, "stop_token_ids": COMMON},
    "min_tokens and strings": {"min_tokens": 7, "stop": ("a", "e", "o", "\N{REPLACEMENT CHARACTER}")},
    "stop_token_ids": {"stop_token_ids": COMMON, "include_stop_str_in_output": True},
    "bad_words": {"bad_words": ("a", "e", "th", "xyz"), "temperature": 0.9},
    "allowed_token_ids": {"allowed_token_ids": (*LETTERS, EOS, BOS), "min_tokens": 6, "skip_special_tokens": False},
    "special tokens": {"ignore_eos": True, "skip_special_tokens": False, "logit_bias": {EOS: 6.0, BOS: 6.0}},
    "tight": {
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logit_bias": {EOS: 6.0, BOS: 6.0},
    },
}


@pytest.fixture(scope="module")
def engine(llama: Path) -> Engine:
    return load(llama)


def ask(engine: Engine, name: str, params: SamplingParams, resumed: Any = (), **fields: Any) -> None:
    """Add a request with the words that the parameters forbid, as a worker does."""
    words = engine.tokenizer.bad_word_ids(params.bad_words)
    engine.add(EngineRequest(name, PROMPT, params, resumed, bad_words=words, **fields))


def answer(engine: Engine, params: SamplingParams, **fields: Any) -> list[Token]:
    """Return the tokens of the first choice."""
    ask(engine, "r", params, **fields)
    answers = drain(engine)
    assert not answers.errors
    return answers.tokens["r", 0]


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


@pytest.mark.parametrize("name", CASES)
def test_answer_does_not_depend_on_how_it_is_run(llama: Path, engine: Engine, name: str) -> None:
    """Both choices are the same alone, in a crowd with small chunks and preemptions, and after any takeover."""
    params = msgspec.structs.replace(WARM, **CASES[name])
    ask(engine, "whole", params)
    whole = drain(engine).tokens
    rng = random.Random(1)
    crowd = load(llama, max_num_batched_tokens=13, block_size=4, num_kv_blocks=40)
    for i in range(8):
        other = tuple(rng.randrange(256) for _ in range(rng.randint(1, 50)))
        crowd.add(EngineRequest(f"other-{i}", other, msgspec.structs.replace(WARM, seed=i)))
    ask(crowd, "whole", params)
    in_crowd = drain(crowd).tokens
    assert crowd.stats().preemptions > 0
    for choice in range(2):
        assert in_crowd["whole", choice] == whole["whole", choice]
    for done in range(1, 15):
        resumed = tuple(tuple(t.id for t in whole["whole", c][:done]) for c in range(2))
        ask(engine, f"rest-{done}", params, resumed)
    rest = drain(engine).tokens
    for done, choice in itertools.product(range(1, 15), range(2)):
        assert rest[f"rest-{done}", choice] == whole["whole", choice][done:]


def test_neutral_values_give_the_same_answer(engine: Engine) -> None:
    for params in (SamplingParams(temperature=0.0, max_tokens=24), msgspec.structs.replace(WARM, n=1)):
        neutral = msgspec.structs.replace(
            params, min_tokens=0, allowed_token_ids=tuple(range(272)), bad_words=(), stop_token_ids=()
        )
        assert answer(engine, neutral) == answer(engine, params)


def test_rows_without_rules_build_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given requests that use none of the rules, no rule is made or applied."""
    monkeypatch.setattr(sequence_builder, "TokenRules", None)
    params = SamplingParams(temperature=0.0, max_tokens=4, stop=("zz",), stop_token_ids=(3,), logit_bias={1: 2.0})
    assert answer(engine, params)
    with pytest.raises(TypeError):
        answer(engine, msgspec.structs.replace(params, min_tokens=2))


def test_no_end_counts_before_min_tokens(engine: Engine) -> None:
    """The first min_tokens tokens contain no end-of-text and no stop token, and complete no stop string."""
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    free = answer(engine, params)
    early, late = free[2].id, free[2].text
    ends = {"stop_token_ids": (early,)}, {"stop": (late,)}, {"logit_bias": {EOS: 100.0}, "ignore_eos": False}
    for each in ends:
        ending = msgspec.structs.replace(params, **each)
        assert len(answer(engine, ending)) <= 3
        tokens = answer(engine, msgspec.structs.replace(ending, min_tokens=10))
        assert len(tokens) > 10
        if "stop" not in each:
            assert not {early if "stop_token_ids" in each else EOS} & {token.id for token in tokens[:10]}
    masked = answer(engine, SamplingParams(min_tokens=8, ignore_eos=True, logit_bias={EOS: 100.0}, max_tokens=12))
    assert [token.id == EOS for token in masked] == [False] * 8 + [True] * 4, "as in vLLM"


class EndAfterThree:
    """Matcher that allows two tokens and, after three of them, end-of-text only."""

    finished = False

    def __init__(self, *allowed: int) -> None:
        self._allowed = allowed
        self._accepted = 0

    def accept(self, token_id: int) -> bool:
        self._accepted += 1
        return True

    def fill(self, bitmask: torch.Tensor, row: int) -> None:
        bitmask[row] = 0
        for token in (EOS,) if self._accepted == 3 else self._allowed:
            bitmask[row, token // 32] |= 1 << token % 32


def test_grammar_wins_where_only_the_end_is_possible(engine: Engine) -> None:
    m, i = engine.tokenizer.encode("mi")
    params = SamplingParams(
        temperature=0.0, max_tokens=30, min_tokens=20, allowed_token_ids=(EOS, 5), bad_words=("m", "i")
    )
    tokens = answer(engine, params, matcher=partial(EndAfterThree, m, i))
    assert [token.id in (m, i) for token in tokens] == [True, True, True, False]
    assert (tokens[-1].id, tokens[-1].finish_reason) == (EOS, FinishReason.STOP)
    half = msgspec.structs.replace(params, bad_words=("m",))
    assert [token.id for token in answer(engine, half, matcher=partial(EndAfterThree, m, i))] == [i, i, i, EOS]


def test_stop_reason_is_the_token_or_string_that_ended_a_choice(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    free = answer(engine, params)
    text = text_of(free)
    token, string = free[5].id, text[6:8]
    first = next(i for i, each in enumerate(free) if each.id == token)
    shown = msgspec.structs.replace(params, include_stop_str_in_output=True)
    for base in (params, shown):
        by_token = answer(engine, msgspec.structs.replace(base, stop_token_ids=(token,)))
        assert len(by_token) == first + 1
        assert (by_token[-1].finish_reason, by_token[-1].stop_reason) == (FinishReason.STOP, token)
        assert text_of(by_token) == text_of(free[: first + (base is shown)])
        by_string = answer(engine, msgspec.structs.replace(base, stop=("never", string)))
        assert by_string[-1].stop_reason == string
        assert text_of(by_string) == text[: text.index(string) + (len(string) if base is shown else 0)]
    assert {each.stop_reason for each in free} == {None}
    by_eos = answer(engine, SamplingParams(temperature=0.0, logit_bias={EOS: 100.0}, stop_token_ids=(EOS,)))
    assert (by_eos[-1].finish_reason, by_eos[-1].stop_reason) == (FinishReason.STOP, None)
    ignored = msgspec.structs.replace(params, logit_bias={EOS: 100.0}, stop_token_ids=(EOS,))
    assert [each.stop_reason for each in answer(engine, ignored)] == [EOS]


def test_special_tokens_are_shown_on_request(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logit_bias={EOS: 100.0})
    assert text_of(answer(engine, params)) == ""
    shown = msgspec.structs.replace(params, skip_special_tokens=False)
    assert text_of(answer(engine, shown)) == "<eos>" * 3
    ended = msgspec.structs.replace(shown, ignore_eos=False)
    assert text_of(answer(engine, ended)) == "", "the token that ends an answer is no part of its text"
    assert text_of(answer(engine, msgspec.structs.replace(ended, include_stop_str_in_output=True))) == "<eos>"


def test_bad_words_are_never_completed(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    free = text_of(answer(engine, params))
    word = free[4:6]
    without = text_of(answer(engine, msgspec.structs.replace(params, bad_words=(word,))))
    assert without[:5] == free[:5] and word not in without
    allowed = msgspec.structs.replace(params, allowed_token_ids=(5, 6), bad_words=())
    assert {token.id for token in answer(engine, allowed)} <= {5, 6}


def test_bad_word_has_a_form_after_a_space_as_in_vllm(engine: Engine, smollm2: Path) -> None:
    from workers.engine.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(smollm2)
    river, spaced = tokenizer.encode("river"), tokenizer.encode(" river")
    assert len(river) == len(spaced) == 1 and river != spaced
    assert tokenizer.bad_word_ids([" river"]) == (tuple(river), tuple(spaced))
    assert engine.tokenizer.bad_word_ids(["ab"]) == (tuple(engine.tokenizer.encode("ab")),), "of another length"
    with pytest.raises(InvalidRequest, match="bad_words") as refused:
        engine.tokenizer.bad_word_ids(["ok", " "])
    assert refused.value.param == "bad_words"


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids"])
def test_tokens_outside_the_vocabulary_are_refused(engine: Engine, name: str) -> None:
    with pytest.raises(InvalidRequest, match="token 272 is outside the vocabulary of 272") as refused:
        ask(engine, "r", SamplingParams(**{name: (1, 272)}))
    assert refused.value.param == name
    assert not engine.has_work()


def test_max_tokens_is_lowered_to_what_the_prompt_leaves(llama: Path) -> None:
    engine = load(llama, max_model_len=48)
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=100_000, min_tokens=500)
    tokens = answer(engine, params)
    assert len(tokens) == 48 - len(PROMPT)
    assert tokens[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(
        ContextLengthExceeded, match=r"48 tokens, but the prompt has 49.*max_tokens is 7"
    ) as refused:
        engine.add(EngineRequest("r", (1,) * 49, SamplingParams(max_tokens=7), prompt_param="messages"))
    assert refused.value.param == "messages"


@pytest.mark.parametrize("scheduling", ["continuous", "static"])
def test_prompt_is_scored_without_a_token(llama: Path, scheduling: str) -> None:
    """Given max_tokens 0, echo and logprobs, the scores are those that an answer's echo has, in chunks too."""
    scores = []
    for chunk, max_tokens, n in ((512, 4, 1), (512, 0, 1), (7, 0, 3)):
        engine = load(llama, max_num_batched_tokens=chunk, block_size=4, scheduling=scheduling)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, n=n, echo=True, logprobs=2)
        engine.add(EngineRequest("other", PROMPT, SamplingParams(temperature=0.0, max_tokens=9)))
        engine.add(EngineRequest("r", PROMPT, params))
        outputs: list[EngineOutput] = []
        while engine.has_work():
            outputs += [output for output in engine.step() if output.job_id == "r"]
        assert engine.stats().blocks_used == 0
        scores.append([token.logprobs for output in outputs for token in output.prompt])
        if max_tokens == 0:
            assert [(output.tokens, output.finished) for output in outputs] == [((), True)]
    assert scores[0] == scores[1] == scores[2]
    assert len(scores[0]) == len(PROMPT)


def test_prompt_that_fills_the_context_can_be_scored(llama: Path) -> None:
    engine = load(llama, max_model_len=48)
    engine.add(EngineRequest("r", (5,) * 48, SamplingParams(max_tokens=0, echo=True, logprobs=0)))
    answers: Answers = drain(engine)
    assert answers.finished == {"r"} and not answers.errors
