"""huggingface_hub's InferenceClient."""

import json

from features import EMBEDDER, KEY, MODEL, URL, feature, main
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

client = InferenceClient(base_url=URL, api_key=KEY)
embedder = InferenceClient(base_url=f"{URL}/models/{EMBEDDER}", api_key=KEY)
PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Say hi"}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}


@feature("chat")
def chat():
    assert client.chat_completion(MESSAGES, model=MODEL, max_tokens=16).choices[0].message.content
    assert client.chat_completion(MESSAGES, max_tokens=16).model == MODEL


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


@feature("text generation")
def text():
    assert "Paris" in client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    assert client.text_generation(PROMPT, max_new_tokens=8).startswith(PROMPT)


@feature("text generation with details")
def details():
    found = client.text_generation(
        PROMPT, max_new_tokens=4, details=True, decoder_input_details=True, top_n_tokens=3, return_full_text=False
    )
    assert "".join(token.text for token in found.details.tokens) == found.generated_text
    assert "".join(token.text for token in found.details.prefill) == PROMPT
    assert [len(top) for top in found.details.top_tokens] == [3] * 4 and found.details.finish_reason == "length"


@feature("text generation, streamed")
def text_streamed():
    whole = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    assert "".join(client.text_generation(PROMPT, max_new_tokens=8, stream=True)) == whole
    *_, last = client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True, return_full_text=False)
    assert (last.generated_text, last.details.generated_tokens) == (whole, 8)


@feature("sampling parameters, seed and best_of")
def sampling():
    given = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "typical_p": 0.9, "repetition_penalty": 1.1}
    first, second = (client.text_generation(PROMPT, max_new_tokens=8, seed=7, **given) for _ in range(2))
    assert first == second
    found = client.text_generation(PROMPT, max_new_tokens=8, best_of=2, do_sample=True, details=True)
    assert len(found.details.best_of_sequences) == 1


@feature("stop sequences and grammars")
def constraints():
    assert client.text_generation(PROMPT, max_new_tokens=32, stop=["Paris"], return_full_text=False).endswith(
        "Paris"
    )
    form = {"type": "json", "value": SCHEMA}
    assert "name" in json.loads(
        client.text_generation(PROMPT, max_new_tokens=64, grammar=form, return_full_text=False)
    )
    form = {"type": "regex", "value": "[0-9]{3}"}
    assert client.text_generation(PROMPT, max_new_tokens=64, grammar=form, return_full_text=False).isdigit()


@feature("validation errors")
def errors():
    try:
        client.text_generation(PROMPT, temperature=-1)
    except ValidationError as error:
        assert str(error) == "Input validation error: `temperature` must be strictly positive"
    else:
        raise AssertionError("accepted")


@feature("feature extraction")
def features():
    assert embedder.feature_extraction(["a", "b"]).shape == (2, 384)


main()
