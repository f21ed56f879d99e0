"""OpenAI's Python package."""

import json
import time

import openai
from features import EMBEDDER, KEY, MODEL, URL, feature, main
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)
MESSAGES = [{"role": "user", "content": "Say hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    name: str = Field(max_length=20)
    capital: bool


@feature("models")
def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@feature("chat")
def chat():
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=16)
    assert answer.choices[0].message.content and answer.usage.completion_tokens


@feature("chat, streamed")
def chat_stream():
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@feature("chat, its own answer sent back")
def echo_back():
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
    again = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "Again"}]
    assert client.chat.completions.create(model=MODEL, messages=again, max_tokens=8).choices


@feature("tools, forced")
def tools():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Weather in Rome?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=64,
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and "city" in json.loads(call.function.arguments)
    history = [
        {"role": "user", "content": "Weather in Rome?"},
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER], max_tokens=8).choices


@feature("tools, streamed")
def tools_stream():
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=64,
    ) as stream:
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
    call = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert "".join(deltas) == call.arguments and "city" in json.loads(call.arguments)


@feature("structured output, parsed")
def parsed():
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "A city"}], response_format=City, max_tokens=100
    )
    assert isinstance(answer.choices[0].message.parsed, City)


@feature("log-probabilities")
def logprobs():
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=5
    )
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 5


@feature("completions")
def completions():
    answer = client.completions.create(model=MODEL, prompt="The sea is", max_tokens=8, n=2, logprobs=3, echo=True)
    assert len(answer.choices) == 2 and answer.choices[0].text.startswith("The sea is")


@feature("embeddings")
def embeddings():
    answer = client.embeddings.create(model=EMBEDDER, input=["a", "b"])
    assert [len(each.embedding) for each in answer.data] == [384, 384]


@feature("responses")
def responses():
    answer = client.responses.create(model=MODEL, input="Say hi", max_output_tokens=16)
    assert answer.output_text
    following = client.responses.create(
        model=MODEL, input="Again", previous_response_id=answer.id, max_output_tokens=16
    )
    assert following.output_text and client.responses.retrieve(answer.id).id == answer.id


@feature("responses, streamed")
def responses_stream():
    with client.responses.stream(model=MODEL, input="Say hi", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] in {"response.completed", "response.incomplete"}
    assert "response.output_text.delta" in kinds


@feature("responses, parsed")
def responses_parsed():
    answer = client.responses.parse(model=MODEL, input="A city", text_format=City, max_output_tokens=100)
    assert isinstance(answer.output_parsed, City)


@feature("responses, tool call and its result")
def responses_tools():
    tool = {"type": "function", **WEATHER["function"], "strict": False}
    common = {"model": MODEL, "tools": [tool], "max_output_tokens": 64}
    asked = [{"role": "user", "content": "Weather in Rome?"}]
    answer = client.responses.create(input=asked, tool_choice="required", parallel_tool_calls=False, **common)
    call = next(item for item in answer.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    assert client.responses.create(input=[*asked, *answer.output, result], **common).output


@feature("responses, tokens counted")
def responses_count():
    counted = client.responses.input_tokens.count(model=MODEL, input="Say hi").input_tokens
    answer = client.responses.create(model=MODEL, input="Say hi", max_output_tokens=16)
    assert counted == answer.usage.input_tokens


@feature("files and batches")
def batches():
    lines = [
        {
            "custom_id": str(i),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": MESSAGES, "max_tokens": 4},
        }
        for i in range(3)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    uploaded = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in ("completed", "failed", "expired"):
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts.completed == 3
    assert len(client.files.content(batch.output_file_id).text.splitlines()) == 3


@feature("typed errors")
def errors():
    for error, call in (
        (openai.NotFoundError, {"model": "none", "messages": MESSAGES}),
        (openai.BadRequestError, {"model": MODEL, "messages": MESSAGES, "temperature": -1}),
    ):
        try:
            client.chat.completions.create(**call)
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")


@feature("fields that the server does not know")
def unknown():
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, extra_body={"keep_alive": "5m"}
    )
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-headrace-ignored-fields"] == "keep_alive"


main()
