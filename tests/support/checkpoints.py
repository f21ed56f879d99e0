"""Tiny random checkpoints of each architecture with a byte-level tokenizer, and transformers' answers for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where an engine runs by default
SHAPE: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "initializer_range": 0.2,  # large enough that answers do not soon repeat one token
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}  # low enough to change answers
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True, head_dim=8),
    "llama-biased": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3, head_dim=16),
    "llama-linear": LlamaConfig(**SHAPE, rope_parameters=LINEAR),
    "llama-dynamic": LlamaConfig(**SHAPE, rope_parameters=DYNAMIC),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, rope_parameters=YARN),
    "mistral": MistralConfig(**SHAPE, sliding_window=9),
    "qwen2-window": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "gemma2": Gemma2Config(**SHAPE, **CAPS, head_dim=16, query_pre_attn_scalar=24, sliding_window=9),
    "gemma3": Gemma3TextConfig(
        **SHAPE, head_dim=16, query_pre_attn_scalar=24, sliding_window=9, sliding_window_pattern=2
    ),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=5, num_experts_per_tok=2, sliding_window=30),
    "qwen3-moe": Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32, mlp_only_layers=[1]
    ),
    "gpt-oss": GptOssConfig(**SHAPE, head_dim=16, num_local_experts=5, num_experts_per_tok=2, sliding_window=9),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, 0–255, then <bos> and <eos>; an accented letter takes two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<bos>", "<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('system goes first') }}{% endif %}"
        "{{ bos_token + m.role + ':' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'assistant:' }}{% endif %}"
    )
    return tokenizer


def save_checkpoint(folder: Path, config: PreTrainedConfig, **save: Any) -> Path:
    """Save a random model of that shape, with random biases and norms, and the byte tokenizer."""
    torch.manual_seed(len(type(config).__name__))
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    model.save_pretrained(folder, **save)
    byte_tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def hf_model(folder: Path) -> PreTrainedModel:
    """Load a checkpoint with transformers, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def hf_greedy(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """Return transformers' greedy answer, including the end-of-text token."""
    inputs = torch.tensor([prompt])
    out = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def hf_agrees(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> bool:
    """Return whether each token of an answer is transformers' greedy choice after those before it.

    One pass over the whole answer computes what `hf_greedy` computes token by token.
    """
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    return bool(logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer)


def random_prompts(count: int) -> list[list[int]]:
    """Return `count` prompts of 1 to 60 random bytes, the same ones for the same count."""
    rng = random.Random(count)
    return [[rng.randrange(256) for _ in range(rng.randint(1, 60))] for _ in range(count)]
