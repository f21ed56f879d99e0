"""Simon Willison's llm, with a model declared in its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from features import KEY, MODEL, URL, feature, main

folder = tempfile.mkdtemp()
Path(folder, "extra-openai-models.yaml").write_text(
    json.dumps([{"model_id": "m", "model_name": MODEL, "api_base": f"{URL}/v1", "supports_schema": True}])
)
LLM = str(Path(sys.executable).parent / "llm")


def run(*words):
    environment = {**os.environ, "LLM_USER_PATH": folder}
    command = [LLM, *words, "--key", KEY]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout


@feature("prompt, streamed")
def streamed():
    assert run("-m", "m", "-o", "max_tokens", "16", "Say hi").strip()


@feature("prompt, whole")
def whole():
    assert run("-m", "m", "-o", "max_tokens", "16", "--no-stream", "Say hi").strip()


@feature("schema")
def schema():
    form = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
    assert "name" in json.loads(run("-m", "m", "-o", "max_tokens", "64", "--schema", json.dumps(form), "A city"))


main()
