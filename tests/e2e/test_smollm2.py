"""Real model through the full stack: the first commands of a new user, and the openai package."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.launched_server import Launched
from tests.support.tested_runtime import START_LIMIT_S, runtime_settings

pytestmark = pytest.mark.slow

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def up(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    launched = Launched(tmp_path_factory.mktemp("smollm2"), **runtime_settings())
    try:
        launched.await_line("^ready: ", limit=START_LIMIT_S)
        yield launched
        launched.await_idle()  # no test may leave a block in use
    finally:
        assert launched.stop() == 0


@pytest.fixture
def client(up: Launched) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_ask_prints_only_the_answer(smollm2: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "up", "--port", "0", "--data-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--ask", "What is the capital of France?"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "The capital of France is Paris.\n"


def test_a_greedy_answer_equals_that_of_transformers(client: openai.OpenAI, smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    messages = [{"role": "user", "content": "Name three rivers of Europe."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]

    answer = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=20)

    assert answer.choices[0].message.content == tokenizer.decode(generated, skip_special_tokens=True)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == ids["input_ids"].shape[1]
    assert answer.usage.completion_tokens == len(generated)


def test_streams_add_up_to_the_answer(client: openai.OpenAI) -> None:
    options = {"model": "smollm2", "messages": FRANCE, "temperature": 0.8, "seed": 5, "n": 2, "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    said = ["", ""]
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert said == [choice.message.content for choice in whole.choices]
    counted = [(each.prompt_tokens, each.completion_tokens, each.total_tokens) for each in (usage, whole.usage)]
    assert counted[0] == counted[1]
    assert usage.prompt_tokens_details.cached_tokens > 0, "the prompt was asked before"


async def test_concurrent_streams_equal_single_ones(up: Launched) -> None:
    async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(seed: int) -> str:
            stream = await client.chat.completions.create(
                model="smollm2", messages=FRANCE, temperature=1, seed=seed, max_tokens=16, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(ask(seed) for seed in range(8)))
        alone = [await ask(seed) for seed in range(3)]
    assert list(together[:3]) == alone
    assert len(set(together)) > 1


def test_a_prompt_that_is_too_long_is_refused_with_numbers(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError, match=r"8192.*") as refused:
        client.chat.completions.create(model="smollm2", messages=messages, max_tokens=100)
    assert refused.value.code == "context_length_exceeded"
    assert "100" in refused.value.message


def test_an_answer_ends_before_its_stop_string(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, stop=[" is Pa"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("The capital of France", "stop")


def test_a_stream_outlives_its_worker_unchanged(client: openai.OpenAI, up: Launched) -> None:
    options = {"model": "smollm2", "messages": FRANCE, "temperature": 1, "seed": 11, "max_tokens": 60}
    options["extra_body"] = {"ignore_eos": True}
    undisturbed = client.chat.completions.create(**options).choices[0].message.content
    up.await_idle()  # while this worker is still alive
    said = ""
    for number, chunk in enumerate(client.chat.completions.create(**options, stream=True)):
        said += chunk.choices[0].delta.content or ""
        if number == 10:
            up.kill("worker")
    assert said == undisturbed


class Weather(BaseModel):
    city: str
    warm: bool


def test_responses_chain_and_follow_a_schema(client: openai.OpenAI) -> None:
    """Given a real model, responses use previous ones, follow a schema, and call a function."""
    options = {"model": "smollm2", "temperature": 0, "max_output_tokens": 60}
    first = client.responses.create(input=FRANCE[0]["content"], **options)
    assert "Paris" in first.output_text
    chat = [
        *FRANCE,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Italy?"},
    ]
    second = client.responses.create(input="And of Italy?", previous_response_id=first.id, **options)
    whole = client.chat.completions.create(model="smollm2", messages=chat, temperature=0, max_tokens=60)
    assert second.output_text == whole.choices[0].message.content

    parsed = client.responses.parse(input="The weather in Rome, as JSON.", text_format=Weather, **options)
    assert isinstance(parsed.output_parsed, Weather)

    tool = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema(), "strict": False}
    must = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    called = client.responses.create(input="Weather in Rome?", **must, **options)
    [call] = called.output
    assert (call.type, call.name) == ("function_call", "weather")
    Weather.model_validate_json(call.arguments)
    events = list(client.responses.retrieve(called.id, stream=True))
    assert events[-1].response.output == called.output

    pattern = {"type": "grammar", "syntax": "regex", "definition": r"[a-c]{3}\dé!"}
    custom = {"type": "custom", "name": "patch", "format": pattern}
    made = client.responses.create(input="Patch it.", tools=[custom], tool_choice="required", **options)
    assert re.fullmatch(pattern["definition"], made.output[0].input)

    long = [{"role": "user", "content": "word " * 9000}, *chat]
    assert client.responses.create(input=long, truncation="auto", **options).output_text == second.output_text


class River(BaseModel):
    name: Annotated[str, Field(max_length=20)]
    length_km: Annotated[int, Field(ge=1, le=9999)]
    kind: Literal["stream", "river"]


LOOKUP: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a river up.",
        "parameters": River.model_json_schema(),
        "strict": True,
    },
}
NOTE: Any = {"type": "function", "function": {"name": "note", "parameters": River.model_json_schema()}}
RIVER: Any = [{"role": "user", "content": "Tell me about a river."}]


def test_answers_are_parsed_into_a_pydantic_model(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="smollm2", messages=RIVER, response_format=River, temperature=1.2, seed=2, n=3
    )
    assert all(isinstance(choice.message.parsed, River) for choice in found.choices)
    assert found.system_fingerprint
    assert found.system_fingerprint.startswith("fp_")
    with client.chat.completions.stream(model="smollm2", messages=RIVER, response_format=River, seed=2) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, River)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"look_up", "note"}), ({"type": "function", "function": {"name": "note"}}, {"note"})],
)
def test_required_calls_are_made(client: openai.OpenAI, choice: Any, names: set[str]) -> None:
    options: Any = {"model": "smollm2", "messages": RIVER, "tools": [LOOKUP, NOTE], "tool_choice": choice}
    options |= {"temperature": 1, "seed": 4, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    [call] = whole.message.tool_calls or []
    assert call.function.name in names
    assert River.model_validate_json(call.function.arguments)
    with client.chat.completions.stream(**{**options, "tools": [LOOKUP, {**NOTE}]}) as stream:
        streamed = stream.get_final_completion().choices[0].message
    [again] = streamed.tool_calls or []
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)


def test_a_model_may_answer_or_call(client: openai.OpenAI) -> None:
    """Given the choice, the answer is text or valid calls; the next turn reads the tool's result."""
    made: Any = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    turns: Any = [
        *RIVER,
        {"role": "assistant", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": "The Rhine is 1230 km long."},
    ]
    answer = client.chat.completions.create(
        model="smollm2", messages=turns, tools=[LOOKUP], temperature=0, max_tokens=200
    ).choices[0]
    calls = answer.message.tool_calls or []
    assert answer.message.content or calls
    for call in calls:
        assert River.model_validate_json(call.function.arguments)


def test_answers_are_calls_or_the_requested_format(client: openai.OpenAI) -> None:
    """Given tools and a format, each choice is a valid call, or JSON of the format, in a chat and in a
    response.
    """
    chat = client.chat.completions.parse(
        model="smollm2", messages=RIVER, tools=[LOOKUP], response_format=River, temperature=1.2, seed=7, n=2
    )
    for choice in chat.choices:
        calls = choice.message.tool_calls or []
        assert (choice.message.parsed is None) == bool(calls)
        assert all(River.model_validate_json(call.function.arguments) for call in calls)
    flat: Any = {"type": "function", **LOOKUP["function"]}
    options: Any = {"tools": [flat], "extra_body": {"seed": 3}}
    found = client.responses.parse(model="smollm2", input="A river?", text_format=River, **options)
    assert found.output_parsed or River.model_validate_json(found.output[0].arguments)


def test_a_schema_that_cannot_be_compiled_is_a_400(client: openai.OpenAI) -> None:
    for given in ({"regex": "(a"}, {"grammar": "root ::= nothing"}, {"json": {"type": "thing"}}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="smollm2", messages=RIVER, extra_body={"structured_outputs": given}
            )
        assert refused.value.param == "structured_outputs"
