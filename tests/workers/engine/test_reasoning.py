"""Answers of an engine whose model reasons: takeovers, constraints and tool calls after the reasoning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from headrace import LLM
from shared.protocol import (
    FinishReason,
    Function,
    Message,
    SamplingParams,
    Structured,
    Token,
    Tools,
    count_reasoning,
)
from tests.support.engine_driver import drain, load
from tests.support.reasoning_model import END_THINK, OPENING_TEMPLATE, THINK, TURN_END, save_reasoning_model
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec, EngineRequest

# the model thinks for some tokens, because its random answers would rarely have a tag
PARAMS = SamplingParams(max_tokens=30, seed=11, logit_bias={END_THINK: 6.0, TURN_END: -100.0})
DIGITS = ConstraintSpec(Structured(regex="[0-9]{4}"))
FUNCTION = Function("f", parameters='{"type": "object", "properties": {}}')
TOOLS = ConstraintSpec(None, Tools((FUNCTION,), required=True, parallel=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reasoning_model(tmp_path_factory.mktemp("reasoning"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


def ask(
    engine: Engine,
    spec: ConstraintSpec | None = None,
    params: SamplingParams = PARAMS,
    *,
    opening: str = "<think>\n",
) -> EngineRequest:
    """Return a request with a chat, after whose generation prompt the template has written `opening`."""
    prompt = engine.tokenizer.encode_chat([Message("user", "Hi")]) + engine.tokenizer.encode(opening)
    if spec is TOOLS:  # a call has many tokens
        params = msgspec.structs.replace(params, max_tokens=80)
    request = EngineRequest("r", tuple(prompt), params, separates_reasoning=True)
    if spec is None:
        return request
    assert engine.constraints is not None
    made = engine.constraints.start(spec).result()
    return dataclasses.replace(request, matcher=made.matcher, tool_parser=made.tool_parser)


def answer(engine: Engine, request: EngineRequest) -> list[Token]:
    engine.add(request)
    return drain(engine).tokens["r", 0]


def reasoning(tokens: list[Token]) -> str:
    return "".join(token.reasoning for token in tokens)


def content(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


@pytest.mark.parametrize("spec", [None, DIGITS, TOOLS], ids=["free", "digits", "tools"])
@pytest.mark.parametrize("budget", [None, 2], ids=["own-end", "forced-end"])
def test_a_takeover_at_any_token_continues_the_answer(
    engine: Engine, spec: ConstraintSpec | None, budget: int | None
) -> None:
    request = ask(engine, spec, msgspec.structs.replace(PARAMS, thinking_token_budget=budget))
    whole = answer(engine, request)
    assert reasoning(whole)
    assert content(whole) or whole[-1].finish_reason is FinishReason.TOOL_CALLS
    if budget is not None:
        assert count_reasoning(whole) == budget
    for done in range(1, len(whole)):
        resumed = (tuple(token.id for token in whole[:done]),)
        engine.add(dataclasses.replace(request, id=str(done), resumed=resumed))
    found = drain(engine).tokens
    for done in range(1, len(whole)):
        assert found[str(done), 0] == whole[done:]


def test_choices_reason_on_their_own(engine: Engine) -> None:
    request = ask(engine, params=msgspec.structs.replace(PARAMS, n=3))
    engine.add(request)
    found = drain(engine).tokens
    alone = answer(engine, ask(engine))
    assert found["r", 0] == alone
    assert len({reasoning(found["r", choice]) for choice in range(3)}) == 3


def test_a_constraint_holds_after_the_reasoning(engine: Engine) -> None:
    tokens = answer(engine, ask(engine, DIGITS))
    assert not reasoning(tokens).isdecimal()
    assert content(tokens).isdecimal()
    assert len(content(tokens)) == 4
    assert tokens[-1].finish_reason is FinishReason.STOP


def test_a_constraint_holds_at_once_without_reasoning(engine: Engine) -> None:
    biased = msgspec.structs.replace(PARAMS, logit_bias={THINK: -100.0})
    tokens = answer(engine, ask(engine, DIGITS, biased, opening=""))
    assert count_reasoning(tokens) == 0
    assert content(tokens).isdecimal()
    eager = msgspec.structs.replace(PARAMS, logit_bias={THINK: 100.0})
    tokens = answer(engine, ask(engine, DIGITS, eager, opening="<think>\n\n</think>\n\n"))
    assert len(content(tokens)) == 4
    assert content(tokens).isdecimal()


def test_a_model_may_begin_to_reason_before_constrained_content(engine: Engine) -> None:
    """Given a model that opens its reasoning itself, expect the constraint to hold after it."""
    eager = msgspec.structs.replace(PARAMS, logit_bias={THINK: 15.0, END_THINK: 15.0})
    tokens = answer(engine, ask(engine, DIGITS, eager, opening=""))
    assert tokens[0].id == THINK
    assert content(tokens).isdecimal()


def test_a_constrained_answer_does_not_end_in_its_reasoning(engine: Engine) -> None:
    eager = msgspec.structs.replace(PARAMS, logit_bias={END_THINK: 6.0, TURN_END: 100.0})
    assert content(answer(engine, ask(engine, DIGITS, eager))).isdecimal()
    assert [token.id for token in answer(engine, ask(engine, None, eager))] == [TURN_END]


def test_a_required_call_follows_the_reasoning(engine: Engine) -> None:
    tokens = answer(engine, ask(engine, TOOLS))
    calls = [call for token in tokens for call in token.calls]
    assert reasoning(tokens)
    assert content(tokens) == ""
    assert calls[0].name == "f"
    assert json.loads("".join(call.arguments for call in calls)) == {}
    assert tokens[-1].finish_reason is FinishReason.TOOL_CALLS


def test_a_call_within_the_reasoning_is_none(engine: Engine) -> None:
    """Given a whole call in the reasoning, whose budget it takes, expect an answer without calls."""
    thought = engine.tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    optional = ConstraintSpec(None, Tools((FUNCTION,)))
    limits = {"max_tokens": len(thought) + 8, "thinking_token_budget": len(thought)}
    params = msgspec.structs.replace(PARAMS, logit_bias={TURN_END: 100.0}, **limits)
    request = dataclasses.replace(ask(engine, optional, params), resumed=(tuple(thought),))
    tokens = answer(engine, request)
    assert engine.tokenizer.decode_all([token.id for token in tokens]) == "\n</think>\n\n<|im_end|>"
    assert not any(token.calls for token in tokens)
    assert tokens[-1].finish_reason is FinishReason.STOP


def test_reasoning_without_an_end_takes_the_whole_answer(engine: Engine) -> None:
    params = SamplingParams(max_tokens=12, seed=1, logit_bias={END_THINK: -100.0, TURN_END: -100.0})
    tokens = answer(engine, ask(engine, params=params))
    assert all(token.is_reasoning for token in tokens)
    assert content(tokens) == ""
    assert tokens[-1].finish_reason is FinishReason.LENGTH


def test_hidden_reasoning_is_counted(engine: Engine) -> None:
    shown = answer(engine, ask(engine, params=msgspec.structs.replace(PARAMS, logprobs=1)))
    params = msgspec.structs.replace(PARAMS, logprobs=1, include_reasoning=False)
    hidden = answer(engine, ask(engine, params=params))
    assert [token.id for token in hidden] == [token.id for token in shown]
    assert count_reasoning(hidden) == count_reasoning(shown)
    assert (reasoning(hidden), content(hidden)) == ("", content(shown))
    assert all((token.logprobs is None) == token.is_reasoning for token in hidden)
    assert all(token.logprobs is not None for token in shown)


def test_a_budget_ends_the_reasoning_of_a_prompt_too(engine: Engine) -> None:
    """Given a prompt instead of a chat, expect the forced tokens in the text, and the constraint after them."""
    params = msgspec.structs.replace(PARAMS, logit_bias={END_THINK: -100.0}, thinking_token_budget=3)
    request = dataclasses.replace(ask(engine, DIGITS, params), separates_reasoning=False)
    thought, closing, digits = content(answer(engine, request)).partition("\n</think>\n\n")
    assert thought
    assert closing
    assert digits.isdecimal()


def test_the_parser_changes_no_token(engine: Engine) -> None:
    """Given a prompt instead of a chat, expect the same tokens, with the tags in the text."""
    request = ask(engine)
    apart = answer(engine, request)
    together = answer(engine, dataclasses.replace(request, separates_reasoning=False))
    assert [token.id for token in apart] == [token.id for token in together]
    assert reasoning(together) == ""
    assert "</think>" in content(together)


def test_off_leaves_the_tags_in_the_text(engine: Engine, folder: Path) -> None:
    off = load(folder, reasoning_parser="off")
    tokens = answer(off, ask(off))
    assert tokens == answer(engine, dataclasses.replace(ask(engine), separates_reasoning=False))


def test_preempted_answers_do_not_change(engine: Engine, folder: Path) -> None:
    """Given a cache for few of the answers, expect the reasoning, its forced end and the rest as before."""
    params = msgspec.structs.replace(PARAMS, thinking_token_budget=4, n=4, logit_bias={TURN_END: -100.0})
    engine.add(ask(engine, params=params))
    expected = drain(engine).tokens
    small = load(folder, num_kv_blocks=9)
    small.add(ask(small, params=params))
    assert drain(small).tokens == expected
    assert small.stats().preemptions


def test_the_python_class_returns_the_reasoning(tmp_path: Path) -> None:
    llm = LLM(save_reasoning_model(tmp_path, OPENING_TEMPLATE), kv_cache_gib=0.01)
    chat = [{"role": "user", "content": "Hi"}]
    params = msgspec.structs.replace(PARAMS, max_tokens=30, thinking_token_budget=5, logprobs=1)
    [shown] = llm.chat(chat, params, use_tqdm=False)
    [hidden] = llm.chat(chat, msgspec.structs.replace(params, include_reasoning=False), use_tqdm=False)
    assert shown.outputs[0].reasoning
    assert hidden.outputs[0].reasoning == ""
    assert hidden.outputs[0].text == shown.outputs[0].text != ""
    assert hidden.outputs[0].token_ids == shown.outputs[0].token_ids
    assert len(hidden.outputs[0].logprobs or ()) == 30
    assert llm.generate("Hi", params, use_tqdm=False)[0].outputs[0].reasoning == ""


def test_neighbours_keep_their_answers(engine: Engine) -> None:
    """Given a constrained answer that reasons, expect a free one beside it to keep its bits."""
    free = dataclasses.replace(ask(engine, params=SamplingParams(max_tokens=20, seed=5, logprobs=0)), id="free")
    engine.add(free)
    alone = drain(engine).tokens["free", 0]
    engine.add(ask(engine, DIGITS))
    engine.add(free)
    assert drain(engine).tokens["free", 0] == alone
