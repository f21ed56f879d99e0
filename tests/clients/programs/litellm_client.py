"""litellm: its functions, and its proxy before the server."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it downloads one

import litellm
from features import EMBEDDER, KEY, LIMIT_S, MODEL, URL, feature, main

litellm.telemetry = False
PROXY_KEY = "sk-" + "7f3a" * 16
COMMON = {"api_base": f"{URL}/v1", "api_key": KEY}
MESSAGES = [{"role": "user", "content": "Say hi"}]


@feature("chat")
def chat():
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.completion(model=f"{provider}/{MODEL}", messages=MESSAGES, max_tokens=16, **COMMON)
        assert answer.choices[0].message.content


@feature("chat, streamed")
def streamed():
    chunks = litellm.completion(model=f"openai/{MODEL}", messages=MESSAGES, max_tokens=16, stream=True, **COMMON)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@feature("tools, forced")
def tools():
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    weather = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    answer = litellm.completion(
        model=f"openai/{MODEL}", messages=MESSAGES, max_tokens=64, tools=[weather], tool_choice="required", **COMMON
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


@feature("responses API")
def responses():
    answer = litellm.responses(model=f"openai/{MODEL}", input="Say hi", max_output_tokens=16, **COMMON)
    assert answer.output_text


@feature("embeddings")
def embeddings():
    answer = litellm.embedding(model=f"openai/{EMBEDDER}", input=["a"], **COMMON)
    assert len(answer.data[0]["embedding"]) == 384


@feature("typed errors")
def errors():
    try:
        litellm.completion(model="openai/none", messages=MESSAGES, **COMMON)
    except litellm.NotFoundError:
        return
    raise AssertionError("no NotFoundError")


@feature("proxy")
def proxy():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            f"model_list:\n- model_name: m\n  litellm_params: {{model: openai/{MODEL}, "
            f"api_base: {URL}/v1, api_key: {KEY}}}\n"
        )
        command = [str(Path(sys.executable).parent / "litellm"), "--config", str(config), "--port", str(port)]
        environment = {**os.environ, "LITELLM_MASTER_KEY": PROXY_KEY}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ask_through(f"http://127.0.0.1:{port}/v1")
        finally:
            server.kill()
            server.wait()


def ask_through(url):
    import openai

    client = openai.OpenAI(base_url=url, api_key=PROXY_KEY, max_retries=0)
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            stream = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=16, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            return
        except openai.APIConnectionError:
            assert time.monotonic() < deadline, "the proxy did not start"
            time.sleep(1)


main()
