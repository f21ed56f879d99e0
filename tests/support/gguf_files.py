"""GGUF files of tiny random models, written with the reference package, and models with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tests.support.checkpoints import byte_tokenizer

# hidden sizes that blocks of 32 divide
SHAPE: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "initializer_range": 0.2,
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a random model with random norms and biases."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            centre = 0.0 if name.endswith("bias") or "gemma" in config.model_type else 1.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.3)
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    kind: Kind = Kind.Q8_0,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model with the byte tokenizer, and give `model` the weights that the file has after rounding.

    Args:
        kind: type of the matrices.
        metadata: further integers, numbers and texts.
        extra: further tensors.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, model.config, {**tokenizer_metadata(), **(metadata or {})})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.float().numpy()
            data = gguf.quants.quantize(values, kind if values.ndim == 2 else Kind.F32)
            rounded = gguf.quants.dequantize(data, kind) if values.ndim == 2 else values
            parameter.copy_(torch.tensor(rounded))
            own = _own_name(name, architecture)
            if architecture.startswith("gemma") and own.endswith("norm.weight"):
                data = data + 1
            if architecture in ("llama", "mistral3") and own.rpartition(".")[0].endswith(("attn_q", "attn_k")):
                data = _interleave(data, len(data) // model.config.head_dim)
            writer.add_tensor(own, data, raw_dtype=kind if values.ndim == 2 else None)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_metadata() -> dict[str, Any]:
    """Return the byte tokenizer with one merge: the metadata of a GGUF file."""
    vocabulary = byte_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "th"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in ("<bos>", "<eos>") else 1 for token in tokens],
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": byte_tokenizer().chat_template,
    }


def _write_metadata(writer: gguf.GGUFWriter, config: PreTrainedConfig, more: dict[str, Any]) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in more.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            adders[type(value)](key, value)


def _own_name(name: str, architecture: str) -> str:
    stem, _, kind = name.rpartition(".")
    names = NAMES | (GEMMA_NAMES if architecture in ("gemma2", "gemma3") else {})
    if stem in names:
        return f"{names[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{names[part]}.{kind}"


def _interleave(data: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of queries or keys as llama.cpp's converter does."""
    split = data.reshape(heads, 2, -1, *data.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(data.shape))
