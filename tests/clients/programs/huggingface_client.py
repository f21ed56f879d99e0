"""huggingface_hub's InferenceClient."""

import json

from features import KEY, MODEL, URL, feature, main
from huggingface_hub import InferenceClient

client = InferenceClient(base_url=f"{URL}/v1", api_key=KEY)
MESSAGES = [{"role": "user", "content": "Say hi"}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}


@feature("chat")
def chat():
    assert client.chat_completion(MESSAGES, model=MODEL, max_tokens=16).choices[0].message.content


@feature("chat, streamed")
def streamed():
    chunks = client.chat_completion(MESSAGES, model=MODEL, max_tokens=16, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@feature("tools, forced")
def tools():
    weather = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    answer = client.chat_completion(
        MESSAGES, model=MODEL, max_tokens=64, tools=[weather], tool_choice={"function": {"name": "weather"}}
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


@feature("JSON schema")
def schema():
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    answer = client.chat_completion(MESSAGES, model=MODEL, max_tokens=64, response_format=form)
    assert "name" in json.loads(answer.choices[0].message.content)


main()
