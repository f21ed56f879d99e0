"""Tool calls: their description in the prompt, the grammar, and the parser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.protocol import CallDelta, FinishReason, Function, Message, SamplingParams, Structured, ToolCall, Tools
from tests.support.engine_driver import Answers, drain, load
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec, EngineRequest
from workers.engine.text.chat_template import native_turns, plain_turns
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.text.tool_call_parser import ToolCallParser
from workers.engine.text.tool_format import HERMES, LLAMA, MISTRAL, MISTRAL_LIST, ToolFormat, detect_tool_format

FORMATS = (HERMES, LLAMA, MISTRAL_LIST, MISTRAL)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "a}]"]}, "days": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "days"],
}
FUNCTIONS = (Function("weather", "Tells it.", json.dumps(SCHEMA)), Function("time", "", json.dumps(SCHEMA)))
HOT = SamplingParams(temperature=1.5, seed=5, max_tokens=300)
# the parts of the models' templates by which they are known
TEMPLATES = {
    "hermes": "{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>{% endif %}",
    "llama": '{% if tools %}Environment: ipython {"name": f, "parameters": {}}{{ tools }}{% endif %}',
    "mistral-list": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS][TOOL_CALLS]{% endif %}",
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS][TOOL_CALLS][ARGS]{% endif %}",
}


@pytest.fixture(scope="module")
def engine(llama: Path) -> Engine:
    return load(llama)


def written(form: ToolFormat, *calls: tuple[str, str]) -> str:
    """Return calls as a model with that format writes them."""
    texts = [form.before + name + form.middle + arguments + form.after for name, arguments in calls]
    return form.opening + form.separator.join(texts) + form.closing


def parse_pieces(
    form: ToolFormat, pieces: list[str], first: tuple[str, ...] = (), *, cut: bool = False
) -> tuple[str, list[CallDelta], bool]:
    """Parse a text that arrives in pieces; `cut`: the model did not end it."""
    tool_parser, text_outside, deltas = ToolCallParser(form, first), "", []
    for i, piece in enumerate(pieces):
        text, more = tool_parser.feed(piece, last=i == len(pieces) - 1, cut=cut)
        text_outside += text
        deltas += more
    return text_outside, deltas, tool_parser.has_call


def joined(deltas: list[CallDelta]) -> list[tuple[str, str]]:
    names = [delta.name for delta in deltas if delta.name]
    return [(n, "".join(d.arguments for d in deltas if d.index == i)) for i, n in enumerate(names)]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_parsed_from_any_pieces(form: ToolFormat, size: int) -> None:
    calls = [("weather", '{"city": "a}]\\"{", "x": [{}]}'), ("time", '{"city": "<tool_call>"}')]
    calls = calls[:1] if form.single_call else calls
    text = "Let me see.\n" + written(form, *calls)
    text_outside, deltas, called = parse_pieces(form, [text[at : at + size] for at in range(0, len(text), size)])
    assert (text_outside, called) == ("Let me see.", True)
    assert joined(deltas) == calls
    assert [bool(delta.name) for delta in deltas if delta.index == 0].index(True) == 0


def test_text_without_calls_is_returned_unchanged() -> None:
    text = "  a <tool_ca b\n\n c  "
    assert parse_pieces(HERMES, list(text)) == (text, [], False)


def test_truncated_call_is_returned_as_far_as_it_goes() -> None:
    text = written(HERMES, ("weather", '{"city": "Oslo"}'))[:-30]
    text_outside, deltas, called = parse_pieces(HERMES, list(text))
    assert (text_outside, called) == ("", False)
    assert joined(deltas)[0][0] == "weather"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("only_calls", [False, True])
def test_a_cut_call_never_shows_its_markup(form: ToolFormat, only_calls: bool) -> None:
    """Wherever the text is cut, and in whatever pieces it arrives, the text outside is that before the call."""
    call = written(form, ("weather", '{"city": "Oslo"}'))
    before = "" if only_calls else "Let me see. "
    openings = (form.call_opening("weather"),) if only_calls else ()
    for end in range(1, len(call)):
        text = before + call[:end]
        for pieces in (list(text), [text], [*text[:-1], text[-1], ""]):
            outside, deltas, _ = parse_pieces(form, pieces, openings, cut=True)
            assert outside.rstrip() == before.rstrip(), (text, outside)
            assert '{"city": "Oslo"}'.startswith("".join(delta.arguments for delta in deltas)), text


def test_text_that_the_model_ends_is_kept() -> None:
    assert parse_pieces(HERMES, list("a <tool_call")) == ("a <tool_call", [], False)
    assert parse_pieces(HERMES, list("a < b"), cut=True) == ("a < b", [], False)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_format_is_detected_from_the_template(form: ToolFormat) -> None:
    assert detect_tool_format(TEMPLATES[form.name]) == (form, True)


def test_templates_without_tools_get_the_hermes_format() -> None:
    assert detect_tool_format("{% for m in messages %}{{ m.content }}{% endfor %}") == (HERMES, False)
    assert detect_tool_format("{{ tools }}<tool_call><function=") == (HERMES, False)


def answer(
    engine: Engine, tools: Tools, params: SamplingParams = HOT, structured: Structured | None = None, **fields: Any
) -> Answers:
    assert engine.constraints is not None
    made = engine.constraints.start(ConstraintSpec(structured, tools)).result(60)
    engine.add(EngineRequest("r", (5, 6, 7), params, matcher=made.matcher, tool_parser=made.tool_parser, **fields))
    return drain(engine)


def calls_in(answers: Answers) -> list[tuple[str, str]]:
    return joined([delta for token in answers.tokens["r", 0] for delta in token.calls])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_required_calls_fit_their_schemas(
    engine: Engine, form: ToolFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a random model that must call any tool or a named one, the answer consists of calls that fit."""
    monkeypatch.setattr(engine.tokenizer, "tool_format", form)
    for tools in (
        Tools(FUNCTIONS, required=True, parallel=False),
        Tools(FUNCTIONS, named="time"),
    ):
        answers = answer(engine, msgspec.structs.replace(tools, functions=tagged(form)))
        [(name, arguments)] = calls_in(answers)
        assert name == "time" if tools.named else name in ("weather", "time")
        assert json.loads(arguments)["city"] in ("Oslo", "a}]")
        assert answers.text("r") == ""
        assert answers.reason("r") is FinishReason.TOOL_CALLS


def tagged(form: ToolFormat) -> tuple[Function, ...]:
    """Return functions that differ between formats, because compiled grammars are cached by request."""
    return tuple(msgspec.structs.replace(each, description=form.name) for each in FUNCTIONS)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_started_call_is_completed_in_its_format(
    engine: Engine, form: ToolFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given optional tools, a call begun after some text is completed; otherwise the answer is text."""
    monkeypatch.setattr(engine.tokenizer, "tool_format", form)
    tools = Tools(tagged(form), parallel=False)
    started = tuple(engine.tokenizer.encode("Hm. " + form.opening + form.before))
    answers = answer(engine, tools, resumed=(started,))
    assert [json.loads(arguments)["city"] in ("Oslo", "a}]") for _, arguments in calls_in(answers)] == [True]
    assert answers.reason("r") is FinishReason.TOOL_CALLS
    free = answer(engine, tools, msgspec.structs.replace(HOT, max_tokens=20, seed=9))
    assert calls_in(free) == []
    assert free.reason("r") in (FinishReason.LENGTH, FinishReason.STOP)


ROW: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["Oslo", "<tool_call>", "[TOOL_CALLS]"]}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
FORM = Structured(json_schema=json.dumps(ROW))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_answer_is_a_call_or_structured_output(
    engine: Engine, form: ToolFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given tools and a schema, a biased model gives either; if a tool must be called, it gives a call."""
    monkeypatch.setattr(engine.tokenizer, "tool_format", form)
    tools = Tools(tagged(form), parallel=False)
    says, calls = biased_towards(engine, "{O"), biased_towards(engine, form.call_opening("time")[0] + "t")
    answers = answer(engine, tools, says, FORM)
    assert (answers.errors, calls_in(answers)) == ({}, [])
    assert json.loads(answers.text("r"))["name"] == "Oslo"
    assert answers.reason("r") is FinishReason.STOP
    must = msgspec.structs.replace(tools, named="time")
    for asked, params in ((tools, calls), (must, says)):
        answers = answer(engine, asked, params, FORM)
        [(name, arguments)] = calls_in(answers)
        assert (name, answers.text("r")) == ("time", "")
        assert json.loads(arguments)["city"] in ("Oslo", "a}]")
        assert answers.reason("r") is FinishReason.TOOL_CALLS


def biased_towards(engine: Engine, characters: str) -> SamplingParams:
    """Return parameters that favour one of these characters wherever it is allowed."""
    return msgspec.structs.replace(HOT, logit_bias=dict.fromkeys(engine.tokenizer.encode(characters), 100.0))


@pytest.mark.parametrize(
    ("structured", "text"),
    [
        (Structured(json_object=True), '{"name": "Ada", "arguments": "<tool_call>"}'),
        (Structured(choice=("yes", '<tool_call>\n{"name": "no')), '<tool_call>\n{"name": "no'),
        (Structured(regex="[ab]+"), "abba"),
        (Structured(grammar='root ::= "x"{3}'), "xxx"),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_structured_output_is_returned_unchanged(
    engine: Engine, structured: Structured, text: str, size: int
) -> None:
    """Given structured output that looks like a call, it is returned as text, from any pieces."""
    assert engine.constraints is not None
    made = engine.constraints.start(ConstraintSpec(structured, Tools(FUNCTIONS))).result(60)
    matcher = made.matcher()
    assert all(matcher.accept(token) for token in engine.tokenizer.encode(text, special=False))
    assert made.tool_parser is not None
    tool_parser = made.tool_parser()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    read = [tool_parser.feed(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    assert ("".join(text_outside for text_outside, _ in read), [c for _, calls in read for c in calls]) == (
        text,
        [],
    )
    assert not tool_parser.has_call


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_first_calls_are_parsed_from_any_pieces(form: ToolFormat, size: int) -> None:
    calls = [("weather", '{"x": 1}'), ("time", "{}")][: 1 if form.single_call else 2]
    text, first = written(form, *calls), tuple(form.call_opening(name) for name in ("time", "weather"))
    text_outside, deltas, called = parse_pieces(
        form, [text[at : at + size] for at in range(0, len(text), size)], first
    )
    assert (text_outside, called) == ("", True)
    assert joined(deltas) == calls


@pytest.mark.parametrize("structured", [None, FORM], ids=["alone", "or a form"])
@pytest.mark.parametrize("done", [3, 30, 50])
def test_resumed_answer_continues_inside_a_call(engine: Engine, done: int, structured: Structured | None) -> None:
    """Given a random model that begins a call, biased to it where it may also write text."""
    tools = Tools(FUNCTIONS, required=structured is None)
    params = msgspec.structs.replace(biased_towards(engine, "<"), max_tokens=80)
    whole = answer(engine, tools, params, structured).tokens["r", 0]
    assert any(token.calls for token in whole)
    ids = tuple(token.id for token in whole[:done])
    rest = answer(engine, tools, params, structured, resumed=(ids,)).tokens["r", 0]
    assert [(t.id, t.text, t.calls, t.finish_reason) for t in rest] == [
        (t.id, t.text, t.calls, t.finish_reason) for t in whole[done:]
    ]


CHAT = (
    Message("system", "Be brief."),
    Message("user", "Weather?"),
    Message("assistant", "", tool_calls=(ToolCall("call_1", "weather", '{"city": "Oslo"}'),)),
    Message("tool", "5 degrees", tool_call_id="call_1"),
)


def test_template_without_tools_gets_them_as_text(engine: Engine) -> None:
    text = engine.tokenizer.decode(engine.tokenizer.encode_chat(CHAT, Tools(FUNCTIONS)))
    assert text.startswith("system:Be brief.\n\n# Tools")
    assert '"name": "weather", "description": "Tells it.", "parameters": {"type": "object"' in text
    assert 'assistant:<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "user:<tool_response>\n5 degrees\n</tool_response>" in text
    assert text.endswith("assistant:")


def test_template_with_tools_gets_them(llama: Path, tmp_path: Path) -> None:
    template = (
        "{% for tool in tools %}{{ tool.function.name }};{% endfor %}[TOOL_CALLS]"
        "{% for m in messages %}{{ m.role }}:"
        "{% for c in m.tool_calls %}{{ c.id ~ c.function.arguments.city }}{% endfor %}"
        "{{ m.tool_call_id }}{{ m.content }}|{% endfor %}"
    )
    folder = shutil.copytree(llama, tmp_path / "llama")
    (folder / "chat_template.jinja").write_text(template)
    made = Tokenizer(folder)
    text = made.decode(made.encode_chat(CHAT, Tools(FUNCTIONS)))
    call = text.partition("assistant:")[2][:9]
    assert call.isalnum()
    assert (
        text
        == f"weather;time;[TOOL_CALLS]system:Be brief.|user:Weather?|assistant:{call}Oslo|tool:{call}5 degrees|"
    )


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_required_call_that_is_cut_has_no_text(
    engine: Engine, form: ToolFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given any max_tokens, and continued after any token, the answer ends by length and shows no markup."""
    monkeypatch.setattr(engine.tokenizer, "tool_format", form)
    tools = Tools(tagged(form), required=True, parallel=False)
    whole = [token.id for token in answer(engine, tools).tokens["r", 0]]
    for size in range(1, 12):
        params = msgspec.structs.replace(HOT, max_tokens=size)
        for resumed in ((), ((tuple(whole[: size - 1])),)) if size > 1 else ((),):
            cut = answer(engine, tools, params, resumed=resumed)
            assert cut.reason("r") is FinishReason.LENGTH
            assert cut.text("r") == ""
            assert all("tool_call" not in delta.arguments for token in cut.tokens["r", 0] for delta in token.calls)


def test_reasoning_goes_to_templates_under_each_name() -> None:
    chat = [Message("user", "hi"), Message("assistant", "x", reasoning="hm")]
    for turns in (native_turns(chat, None, short_ids=False)[0], plain_turns(chat, None)):
        names = dict.fromkeys(("reasoning", "reasoning_content", "thinking"), "hm")
        assert turns[1] == {"role": "assistant", "content": "x", **names}
