"""The tokenizer of a checkpoint is the one that transformers loads, with fewer imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from workers.engine.text.tokenizer import SAFE_LOADING, Tokenizer

TEXT = "Wasser, eau, 水: <bos>2 mills "
LOAD = """
import sys
from pathlib import Path
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
Engine.load(EngineConfig(Path(sys.argv[1]), cache_dir=None, num_kv_blocks=16))
print([name for name in ("torch._dynamo", "transformers.modeling_utils") if name in sys.modules])
"""


@pytest.mark.parametrize("model", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize(
    "named", ["TokenizersBackend", "LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", None]
)
def test_tokenizer_matches_transformers(
    checkpoints: Callable[[str], Path], tmp_path: Path, model: str, named: str | None
) -> None:
    folder = shutil.copytree(checkpoints(model), tmp_path / model)
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name != "tokenizer_class"}
    path.write_text(json.dumps(settings if named is None else {**settings, "tokenizer_class": named}))
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder, **SAFE_LOADING)
    assert type(ours.hf) is type(theirs)
    assert ours.encode(TEXT) == theirs.encode(TEXT)


def test_described_tokenizer_has_tokens_and_template_but_no_paths(llama: Path) -> None:
    tokenizer = Tokenizer(llama)
    found = tokenizer.describe()
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert found[name] == getattr(tokenizer.hf, name), name
    assert found["tokenizer_class"] == type(tokenizer.hf).__name__
    assert str(llama.parent) not in json.dumps(found)


@pytest.mark.slow
def test_registered_model_loads_without_transformers_models(llama: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, str(llama)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
