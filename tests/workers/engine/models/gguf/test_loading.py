"""Models in GGUF files answer as transformers does with the same weights, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shared.errors import ConfigError
from shared.models.model_store import ModelRepository
from shared.settings import load as load_settings
from tests.support.checkpoints import LLAMA3, hf_greedy, hf_model
from tests.support.engine_driver import load, run
from tests.support.gguf_files import SHAPE, random_model, tokenizer_metadata, write_gguf
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.models.gguf.__main__ import write_folder
from workers.engine.text.tokenizer import Tokenizer

PROMPTS = [list(b"a river runs"), list(b"to the mill, and "), [7]]
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LOCAL = {"rope_parameters": {"full_attention": {**ROPE, "rope_theta": 1e6}, "sliding_attention": ROPE}}
LLAMA = LlamaConfig(**SHAPE, rope_parameters=ROPE, rms_norm_eps=1e-5)


def factors() -> np.ndarray:
    """Return the divisors of frequencies with which llama.cpp's converter writes the scaling LLAMA3."""
    plain = 1 / (10_000 ** (torch.arange(0, 16, 2) / 16))
    config = LlamaConfig(**SHAPE, rope_parameters=dict(LLAMA3))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).numpy().astype(np.float32)


def folder_of(tmp_path: Path, config: PreTrainedConfig, architecture: str, **options: Any) -> tuple[Path, Any]:
    """Return the model folder around a new file, and transformers' model with its weights."""
    model = random_model(config)
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture, **options)
    write_folder(path, tmp_path / "model")
    return tmp_path / "model", model


@pytest.mark.parametrize(
    ("config", "architecture", "options"),
    [
        (LLAMA, "llama", {"kind": Kind.Q8_0}),
        pytest.param(LLAMA, "llama", {"kind": Kind.F16}, marks=pytest.mark.slow),
        (
            LlamaConfig(**SHAPE, rope_parameters=dict(LLAMA3), tie_word_embeddings=True, attention_bias=True),
            "llama",
            {"kind": Kind.Q4_0, "extra": {"rope_freqs.weight": factors()}},
        ),
        pytest.param(
            MistralConfig(**SHAPE, rope_parameters=ROPE, sliding_window=None),
            "llama",
            {"kind": Kind.Q5_0},
            marks=pytest.mark.slow,
        ),
        (MistralConfig(**SHAPE, rope_parameters=ROPE, sliding_window=None), "mistral3", {"kind": Kind.Q4_0}),
        (Qwen2Config(**SHAPE, rope_parameters=ROPE), "qwen2", {"kind": Kind.Q5_1}),
        pytest.param(
            Qwen3Config(**SHAPE, rope_parameters=ROPE), "qwen3", {"kind": Kind.BF16}, marks=pytest.mark.slow
        ),
        pytest.param(
            GemmaConfig(**SHAPE, rope_parameters=ROPE), "gemma", {"kind": Kind.Q8_0}, marks=pytest.mark.slow
        ),
        pytest.param(LLAMA, "llama", {"kind": Kind.Q4_1}, marks=pytest.mark.slow),
        (
            Gemma3TextConfig(**SHAPE, **LOCAL, sliding_window=9, query_pre_attn_scalar=16),
            "gemma3",
            {"metadata": {"gemma3.rope.freq_base": 1e6, "gemma3.attention.sliding_window": 9}},
        ),
        (
            Gemma2Config(**SHAPE, rope_parameters=ROPE, sliding_window=9, query_pre_attn_scalar=16),
            "gemma2",
            {"metadata": {"gemma2.attention.sliding_window": 9}},
        ),
    ],
    ids=[
        *("llama", "llama-f16", "llama-3.1", "mistral", "mistral3", "qwen2", "qwen3", "gemma", "llama-q4_1"),
        *("gemma3", "gemma2"),
    ],
)
def test_greedy_answers_equal_transformers(
    tmp_path: Path, config: PreTrainedConfig, architecture: str, options: dict[str, Any]
) -> None:
    folder, model = folder_of(tmp_path, config, architecture, **options)
    assert run(load(folder, device="cpu"), PROMPTS) == [hf_greedy(model, prompt, 24) for prompt in PROMPTS]


def test_tokenizer_and_template_are_those_of_the_file(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, LLAMA, "llama")
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode("the 12") == [
        256,
        258,
        *tokenizer.encode("e", special=False),
        *_bytes(tokenizer, " 12"),
    ]
    assert tokenizer.hf.chat_template == tokenizer_metadata()["tokenizer.chat_template"]
    assert (tokenizer.eos_token_id, tokenizer.special_ids, tokenizer.vocab_size) == (257, {256, 257}, 259)


def _bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    return [token for letter in text for token in tokenizer.encode(letter, special=False)]


@pytest.mark.parametrize(
    ("architecture", "metadata", "reason"),
    [
        ("mamba", {}, "architecture mamba is not supported; supported: llama, mistral3, qwen2"),
        ("llama", {"llama.expert_count": 8}, "mixture of experts"),
        ("llama", {"split.count": 3}, "split into 3 files"),
        ("llama", {"general.type": "adapter"}, "holds a adapter"),
        ("llama", {"llama.rope.scaling.type": "longrope"}, "rope scaling longrope"),
        ("llama", {"llama.rope.dimension_count": 8}, "partial rotary"),
        ("mistral3", {"mistral3.attention.temperature_scale": 0.1}, "scores that are scaled by the position"),
        ("llama", {"llama.attention.head_count": [4, 4]}, "head_count must be a positive integer"),
        ("llama", {"tokenizer.ggml.model": "bert"}, "one of gpt2, llama, got bert"),
        ("llama", {"tokenizer.ggml.pre": "odd"}, "tokenizer.ggml.pre must be one of .*, got odd"),
        ("llama", {"tokenizer.ggml.tokens": 3}, "tokenizer.ggml.tokens must be a list, got 3"),
        ("llama", {"tokenizer.ggml.tokens": ["x"] * 300}, "300 tokens, more than the 272"),
        ("llama", {"tokenizer.ggml.bos_token_id": 999}, "tokenizer cannot be read"),
    ],
)
def test_unsupported_file_is_refused_by_name(
    tmp_path: Path, architecture: str, metadata: dict[str, Any], reason: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_model(LLAMA), architecture, metadata=metadata)
    with pytest.raises(ConfigError, match=reason):
        write_folder(path, tmp_path / "model")


def test_scales_that_are_not_finite_are_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the last scale of the file, no layer is made."""
    folder, _ = folder_of(tmp_path, LLAMA, "llama")
    path = tmp_path / "tiny.gguf"
    data = bytearray(path.read_bytes())
    data[-34:-32] = np.float16(np.nan).tobytes()  # the scale of the last block
    path.write_bytes(data)
    for method in ("linear", "grouped_linear"):
        monkeypatch.setattr(CppKernels, method, lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(ConfigError, match=r"model\.gguf: tensor .* has values that are not finite"):
        load(folder)


@pytest.mark.slow
def test_every_process_finds_the_folder_around_a_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Tiny-2.Q8_0.gguf", random_model(LLAMA), "llama")
    repository = ModelRepository(load_settings({"model": str(path), "cache_dir": tmp_path / "cache"}).settings)
    folder = repository.folder()
    assert repository.served_name == "Tiny-2.Q8_0"
    assert (folder / "model.gguf").resolve() == path
    assert repository.folder() == folder
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"Tiny-2\.Q8_0\.gguf is truncated: it has \d+ bytes, and tensor"):
        repository.folder()


@pytest.mark.slow
def test_smollm2_in_q8_0_answers_as_in_float32(smollm2: Path, tmp_path: Path) -> None:
    model = hf_model(smollm2)
    model.config.head_dim = 64
    vocabulary = Tokenizer(smollm2).hf.get_vocab()
    merges = json.loads((smollm2 / "tokenizer.json").read_text())["model"]["merges"]
    metadata = {
        "llama.rope.freq_base": 100_000.0,
        "tokenizer.ggml.tokens": sorted(vocabulary, key=vocabulary.__getitem__),
        "tokenizer.ggml.token_type": [3 if index < 17 else 1 for index in range(len(vocabulary))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    write_folder(write_gguf(tmp_path / "smollm2.gguf", model, "llama", metadata=metadata), tmp_path / "model")
    texts = ["The capital of France is", "Once upon a time, 12 mills stood by a river. One day,"]
    plain, packed = Tokenizer(smollm2), Tokenizer(tmp_path / "model")
    prompts = [plain.encode(text) for text in texts]
    assert [packed.encode(text) for text in texts] == prompts
    assert run(load(tmp_path / "model"), prompts) == run(load(smollm2), prompts)
