"""Reasoning and content of an answer, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.protocol import Message, SamplingParams
from tests.support.reasoning_model import (
    END_THINK,
    OPENING_TEMPLATE,
    TEMPLATE,
    THINK,
    TURN_END,
    reasoning_tokenizer,
    save_reasoning_model,
)
from workers.engine.text.reasoning_format import MISTRAL, Stage, find_format
from workers.engine.text.reasoning_parser import ReasoningParser
from workers.engine.text.tokenizer import Tokenizer

CHAT = [Message("user", "Hi")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(save_reasoning_model(tmp_path_factory.mktemp("reasoning")))


@dataclass
class Parsed:
    reasoning: str
    content: str
    counted: int
    stage: Stage


def parse(
    tokenizer: Tokenizer,
    text: str,
    prompt: list[int] | None = None,
    *,
    stop: tuple[str, ...] = (),
    trims_content: bool = True,
    budget: int | None = None,
) -> Parsed:
    """Parse an answer, given as text with tags; forced tokens come in between."""
    form = tokenizer.reasoning_format
    assert form is not None
    stream = tokenizer.stream(SamplingParams(stop=stop))
    parser = ReasoningParser(
        form,
        prompt or tokenizer.encode_chat(CHAT),
        frozenset({TURN_END}),
        tag_lengths=(stream.token_length(THINK), stream.token_length(END_THINK)),
        budget=budget,
        trims_content=trims_content,
    )
    found = Parsed("", "", 0, parser.stage)
    ids = [*tokenizer.encode(text), TURN_END]
    while ids:
        token_id = ids.pop(0) if parser.forced_token is None else parser.forced_token
        shown, stopped = stream.feed(token_id)
        last = stopped or not ids
        if last and not stopped:
            shown += stream.flush()[0]
        reasoning, content = parser.feed(token_id, shown, stream.length, last=last)
        found.counted += parser.in_reasoning
        found.reasoning += reasoning
        found.content += content
        if last:
            break
    assert found.counted == parser.num_tokens
    found.stage = parser.stage
    return found


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nhmm, é\n</think>\n\nYes.\n", "hmm, é", "Yes.\n"),
        (" \n<think>hmm</think>Yes.", "hmm", "Yes."),
        ("<think>\n a\n\nb \n</think> ", "a\n\nb", ""),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("<think></think>Yes.", "", "Yes."),
        ("<think>cut of", "cut of", ""),
        ("<think>\n", "", ""),
        ("\nYes.", "", "\nYes."),
        (" ", "", " "),
        ("a<think>b", "", "a<think>b"),
        ("</think>a", "", "a"),
        ("<think><think>a</think></think>\nb</think> c", "a", "b c"),
        ('<think>x <tool_call>{"a": 1}</tool_call> y</think>z', 'x <tool_call>{"a": 1}</tool_call> y', "z"),
    ],
)
def test_tags_separate_reasoning_from_content(
    tokenizer: Tokenizer, text: str, reasoning: str, content: str
) -> None:
    found = parse(tokenizer, text)
    assert (found.reasoning, found.content) == (reasoning, content)


def test_a_template_may_open_the_reasoning(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_reasoning_model(tmp_path, OPENING_TEMPLATE))
    prompt = tokenizer.encode_chat(CHAT)
    assert prompt[-2] == THINK
    found = parse(tokenizer, "hmm\n</think>\n\nYes.", prompt)
    assert (found.reasoning, found.content) == ("hmm", "Yes.")
    found = parse(tokenizer, "<think>\nhmm\n</think>\n\nYes.", prompt)  # the model repeats the tag
    assert (found.reasoning, found.content) == ("hmm", "Yes.")
    assert parse(tokenizer, "no end", prompt).reasoning == "no end"


def test_a_template_may_turn_the_reasoning_off(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode_chat(CHAT) + tokenizer.encode("<think>\n\n</think>\n\n")
    found = parse(tokenizer, "\nYes.", prompt)
    assert (found.reasoning, found.content, found.stage) == ("", "\nYes.", Stage.CONTENT)


def test_tags_of_earlier_turns_do_not_count(tokenizer: Tokenizer) -> None:
    closed = tokenizer.encode("<|im_start|>assistant\n<think>\na\n</think>\nb<|im_end|>\n<|im_start|>assistant\n")
    assert parse(tokenizer, "<think>c</think>d", closed).reasoning == "c"
    opened = tokenizer.encode("<|im_start|>assistant\n<think>\na<|im_end|>\n<|im_start|>assistant\n")
    assert parse(tokenizer, "d", opened).content == "d"


def test_a_quoted_tag_is_text(tokenizer: Tokenizer) -> None:
    """Given the spelling of the end tag in ordinary tokens, expect the reasoning to continue."""
    spelled = [*tokenizer.encode("<think>a "), *(id for c in "</think>" for id in tokenizer.encode(c))]
    assert END_THINK not in spelled
    form = tokenizer.reasoning_format
    assert form is not None
    stream = tokenizer.stream(SamplingParams())
    parser = ReasoningParser(form, [], frozenset(), tag_lengths=(7, 8))
    text = ""
    for token_id in spelled:
        shown, _ = stream.feed(token_id)
        text += parser.feed(token_id, shown, stream.length, last=False)[0]
    assert (text, parser.stage) == ("a </think>", Stage.REASONING)


@pytest.mark.parametrize(
    ("stop", "reasoning", "content"),
    [
        ("mm", "h", ""),
        ("No", "hmm", "Yes. "),
        ("</think>", "hmm", ""),
        ("mm</think>Z", "hmm", "Yes. No."),
        ("m</think>Yes", "hm", ""),
    ],
)
def test_stop_strings_apply_to_reasoning_and_content(
    tokenizer: Tokenizer, stop: str, reasoning: str, content: str
) -> None:
    found = parse(tokenizer, "<think>hmm</think>Yes. No.", stop=(stop,))
    assert (found.reasoning, found.content) == (reasoning, content)


def test_constrained_content_keeps_its_space(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, "<think>a\n</think>\n b", trims_content=False).content == "\n b"


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_a_spent_budget_forces_the_end(tokenizer: Tokenizer, budget: int) -> None:
    found = parse(tokenizer, "<think>abcdef\n</think>", budget=budget)
    assert found.reasoning == "abc"[:budget]
    assert found.counted == budget
    assert found.content == "abcdef\n"[budget:]  # the space around the forced tag is not content


def test_a_budget_may_end_within_a_character(tokenizer: Tokenizer) -> None:
    """Given a character cut by the budget, expect its rest not to count as another token of reasoning."""
    found = parse(tokenizer, "<think>aé</think>b", budget=2)
    assert (found.reasoning, found.counted) == ("a\N{REPLACEMENT CHARACTER}", 2)


def test_a_budget_that_is_not_spent_changes_nothing(tokenizer: Tokenizer) -> None:
    text = "<think>ab</think>cd"
    assert parse(tokenizer, text, budget=3) == parse(tokenizer, text)
    assert parse(tokenizer, "abc", budget=0) == parse(tokenizer, "abc")


@pytest.mark.parametrize("calls", [False, True])
def test_tags_may_be_hidden_special_tokens(tmp_path: Path, calls: bool) -> None:
    """Given Magistral's tags, which the text does not show, expect the same parts."""
    hf = reasoning_tokenizer("{{ messages[0].content.split('[/THINK]')[-1] }}")
    hf.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    hf.save_pretrained(save_reasoning_model(tmp_path))
    tokenizer = Tokenizer(tmp_path)
    form = tokenizer.reasoning_format
    assert form is not None
    assert tokenizer.entry(form.end_id) == "[/THINK]"
    stream = tokenizer.stream(SamplingParams(), calls=calls)
    lengths = (stream.token_length(form.start_id), stream.token_length(form.end_id))
    assert lengths == (0, 0)
    parser = ReasoningParser(form, [], frozenset(), tag_lengths=lengths)
    reasoning = content = ""
    for token_id in tokenizer.encode("[THINK]hmm[/THINK]Yes."):
        shown, _ = stream.feed(token_id)
        thought, answer = parser.feed(token_id, shown, stream.length, last=False)
        reasoning, content = reasoning + thought, content + answer
    assert (reasoning, content) == ("hmm", "Yes.")


def test_the_format_is_detected_or_chosen() -> None:
    hf = reasoning_tokenizer()
    vocabulary = {**hf.get_vocab(), "[THINK]": 300, "[/THINK]": 301}

    def found(chosen: str, template: str | dict[str, str] | None) -> tuple[int, int] | None:
        form = find_format(chosen, template, vocabulary.get, lambda text: [], str)  # type: ignore[arg-type]
        return None if form is None else (form.start_id, form.end_id)

    assert found("auto", TEMPLATE) == (THINK, END_THINK)
    assert found("auto", f"{{{{ '{MISTRAL.end}' }}}}") == (300, 301)
    assert found("auto", {"default": "", "tool_use": TEMPLATE}) == (THINK, END_THINK)
    assert found("auto", "{{ messages }}") is None
    assert found("auto", None) is None
    assert found("off", TEMPLATE) is None
    assert found("mistral", TEMPLATE) == (300, 301)
    del vocabulary["[/THINK]"]
    assert found("auto", MISTRAL.end) is None
    with pytest.raises(ConfigError, match=r"\[THINK\] and \[/THINK\] are not tokens of this model"):
        found("mistral", TEMPLATE)
