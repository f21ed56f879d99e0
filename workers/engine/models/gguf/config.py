"""config.json of a GGUF file, by the architecture that its metadata names."""

from __future__ import annotations

from typing import Any

from shared.errors import ConfigError
from shared.models.gguf_header import BLOCK_TYPES, GgufHeader

# by ggml's name of the architecture: transformers' class and model type
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),  # Mistral 7B and Nemo too
    "mistral3": ("LlamaForCausalLM", "llama"),  # Mistral Small
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma": ("GemmaForCausalLM", "gemma"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
GEMMA3_LOCAL_THETA = 10_000.0
ROTATED_IN_PAIRS = ("llama", "mistral3")  # their rows of queries and keys are in ggml's order
# number of layers of the models whose scores are scaled by the hidden size per head, not by the head's dimension
SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3": 62}
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")  # as in llama.cpp
ROPE_FACTORS = "rope_freqs.weight"


class Metadata:
    """Metadata of a file. Each read raises ConfigError for a value that is missing or of the wrong type."""

    def __init__(self, header: GgufHeader) -> None:
        self._values = header.metadata
        self.architecture = self.text("general.architecture", "")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"GGUF: {key} must be a text, got {type(value).__name__}", param="model")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a positive integer of the architecture."""
        value = self._values.get(f"{self.architecture}.{name}", default)
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"GGUF: {self.architecture}.{name} must be a positive integer, got {str(value)[:80]}",
                param="model",
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number of the architecture."""
        value = self._values.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, int | float):
            raise ConfigError(f"GGUF: {self.architecture}.{name} must be a number, got {value!r}", param="model")
        return float(value)

    def has(self, name: str) -> bool:
        return self._values.get(f"{self.architecture}.{name}") is not None

    def token(self, name: str) -> int | None:
        """Return the id of a special token."""
        value = self._values.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int else None

    def value(self, key: str) -> Any:
        return self._values.get(key)


def parse_config(header: GgufHeader, rope_factors: list[float] | None) -> dict[str, Any]:
    """Return the content of config.json. Raises ConfigError for what the engine cannot compute.

    Args:
        rope_factors: the tensor `rope_freqs.weight`, by whose values frequencies are divided.
    """
    meta = Metadata(header)
    _refuse_features(meta)
    architecture, model_type = ARCHITECTURES[meta.architecture]
    heads, hidden = meta.integer("attention.head_count"), meta.integer("embedding_length")
    head_dim = meta.integer("attention.key_length", meta.integer("rope.dimension_count", hidden // heads))
    if meta.integer("attention.value_length", head_dim) != head_dim:
        raise ConfigError("GGUF: keys and values have different lengths, which is not supported", param="model")
    if meta.integer("rope.dimension_count", head_dim) != head_dim:
        raise ConfigError("GGUF: partial rotary embeddings are not supported", param="model")
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": _vocab_size(header),
        "hidden_size": hidden,
        "intermediate_size": meta.integer("feed_forward_length"),
        "num_hidden_layers": meta.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": meta.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": _rope(meta, rope_factors),
        "bos_token_id": meta.token("bos"),
        "eos_token_id": meta.token("eos"),
        "dtype": _dtype(header),
    }
    if meta.has("attention.sliding_window"):
        config |= {"sliding_window": meta.integer("attention.sliding_window"), "use_sliding_window": True}
    return config | _gemma(meta, config)


def end_tokens(meta: Metadata, tokens: list[str]) -> list[int]:
    """Return the tokens that end an answer: those that the file names, and marks of the end of a turn."""
    named = [meta.token("eos"), meta.token("eot")]
    marks = [index for index, token in enumerate(tokens) if token in END_OF_TURN]
    return sorted({index for index in (*named, *marks) if index is not None})


def _refuse_features(meta: Metadata) -> None:
    if meta.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"GGUF: architecture {meta.architecture or 'without a name'} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}",
            param="model",
        )
    parts = meta.value("split.count")
    if parts not in (None, 0, 1):
        raise ConfigError(
            f"GGUF: the model is split into {parts} files; join them with `llama-gguf-split --merge`", param="model"
        )
    if meta.text("general.type", "model") != "model":
        raise ConfigError(f"GGUF: the file holds a {meta.text('general.type')}, not a model", param="model")
    if meta.has("expert_count") and meta.number("expert_count"):
        raise ConfigError("GGUF: a mixture of experts is not supported", param="model")
    if meta.has("attention.temperature_scale") and meta.number("attention.temperature_scale"):
        raise ConfigError("GGUF: scores that are scaled by the position are not supported", param="model")


def _vocab_size(header: GgufHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise ConfigError("GGUF: the file has no tensor token_embd.weight", param="model")
    return embedding.shape[0]


def _rope(meta: Metadata, factors: list[float] | None) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": meta.number("rope.freq_base", 10_000.0)}
    kind = meta.text(f"{meta.architecture}.rope.scaling.type", "none")
    if kind in ("linear", "yarn") and meta.number("rope.scaling.factor", 1.0) != 1.0:
        rope |= {"rope_type": kind, "factor": meta.number("rope.scaling.factor")}
        if meta.has("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = meta.integer("rope.scaling.original_context_length")
    elif kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"GGUF: rope scaling {kind} is not supported; supported: linear, yarn", param="model")
    if factors is not None:
        if rope["rope_type"] != "default":
            raise ConfigError(f"GGUF: {ROPE_FACTORS} beside rope scaling {kind} is not supported", param="model")
        rope |= {"rope_type": "factors", "factors": factors}
    return rope


def _gemma(meta: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the Gemma family."""
    if not meta.architecture.startswith("gemma"):
        return {}
    found: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh"}
    if meta.architecture == "gemma":
        return found
    layers, hidden, heads = (config[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    by_hidden = layers == SCALED_BY_HIDDEN[meta.architecture]
    found["query_pre_attn_scalar"] = hidden // heads if by_hidden else config["head_dim"]
    if meta.architecture == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            found[name] = meta.number(name, 50.0 if name.startswith("attn") else 30.0)
        return found
    local = {"rope_type": "default", "rope_theta": GEMMA3_LOCAL_THETA}
    return found | {"rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local}}


def _dtype(header: GgufHeader) -> str:
    """Return the type of the weights where they are expanded on a GPU."""
    types = {BLOCK_TYPES[tensor.type].name for tensor in header.tensors.values()}
    if types <= {"F32"}:
        return "float32"
    return "float16" if types <= {"F32", "F16"} else "bfloat16"
