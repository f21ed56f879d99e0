"""Simon Willison's llm, with a model declared in its extra-openai-models.yaml."""

import json
import os
import tempfile
from pathlib import Path

from features import KEY, MODEL, URL, feature, main, run_command

folder = tempfile.mkdtemp()
declared = {"model_id": "m", "model_name": MODEL, "api_base": f"{URL}/v1", "api_key_name": "headrace"}
Path(folder, "extra-openai-models.yaml").write_text(json.dumps([{**declared, "supports_schema": True}]))


def run(*words):
    return run_command("llm", "-m", "m", *words, "--key", KEY, env={**os.environ, "LLM_USER_PATH": folder})


@feature("prompt, streamed")
def streamed():
    assert run("-o", "max_tokens", "16", "Say hi").strip()


@feature("prompt, whole")
def whole():
    assert run("-o", "max_tokens", "16", "--no-stream", "Say hi").strip()


@feature("schema")
def schema():
    form = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
    assert "name" in json.loads(run("-o", "max_tokens", "64", "--schema", json.dumps(form), "A city"))


main()
