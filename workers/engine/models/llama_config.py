"""config.json of the Llama family.

Every feature that the model code would compute wrongly is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shared.errors import ConfigError
from workers.engine.models.decoder import DecoderConfig, parse_token_ids
from workers.engine.models.stored.formats import parse_stored_format

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "factors")
_DEFAULT_WINDOW_TOKENS = 4096  # transformers' default where config.json has no sliding_window


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: its base, its kind of scaling, and the parameters of that kind."""

    theta: float
    kind: str = "default"
    scaling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LlamaModelConfig(DecoderConfig):
    """Dimensions and features of a decoder of the Llama family."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    norm_eps: float
    tie_word_embeddings: bool
    qk_norm: bool
    rope: RopeConfig

    @classmethod
    def parse(cls, architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
        """Parse config.json. Raises ConfigError for a feature that the model code does not compute."""
        _refuse_features(raw)
        heads = _integer(raw, "num_attention_heads")
        hidden = _integer(raw, "hidden_size")
        kv_heads = _integer(raw, "num_key_value_heads", heads)
        head_dim = _integer(raw, "head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise ConfigError(
                f"config.json: {heads} heads of dimension {head_dim} cannot share {kv_heads} key-value heads"
            )
        return cls(
            architecture=architecture,
            vocab_size=_integer(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_integer(raw, "intermediate_size"),
            num_layers=_integer(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            max_position_embeddings=_integer(raw, "max_position_embeddings"),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qk_norm=architecture == "Qwen3ForCausalLM",
            rope=_rope(raw),
            sliding_window=_sliding_window(raw, architecture),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            eos_token_ids=parse_token_ids(raw.get("eos_token_id")),
        )


def _refuse_features(raw: dict[str, Any]) -> None:
    parse_stored_format(raw)
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"config.json: hidden_act must be silu, got {raw['hidden_act']}")
    for name in ("num_local_experts", "num_experts"):
        if raw.get(name):
            raise ConfigError(f"config.json: a mixture of experts is not supported ({name} is set)")


def _integer(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json: {name} must be a positive integer, got {value!r}")
    return value


def _rope(raw: dict[str, Any]) -> RopeConfig:
    """Parse either spelling: rope_parameters, or rope_theta beside rope_scaling."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in scaling.values()):
        raise ConfigError("config.json: rotary embeddings that differ by layer are not supported")
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    theta = scaling.pop("rope_theta", None) or raw.get("rope_theta") or 10_000.0
    partial = scaling.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor") or 1.0
    if kind not in ROPE_TYPES:
        raise ConfigError(f"config.json: rope type {kind} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if partial != 1.0:
        raise ConfigError("config.json: partial rotary embeddings are not supported")
    needed = {"default": None, "factors": "factors"}.get(kind, "factor")
    if needed is not None and needed not in scaling:
        raise ConfigError(f"config.json: rope type {kind} needs {needed}")
    original = raw.get("original_max_position_embeddings")
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    scaling.setdefault("original_max_position_embeddings", _integer(raw, "max_position_embeddings"))
    return RopeConfig(float(theta), kind, scaling)


def _sliding_window(raw: dict[str, Any], architecture: str) -> int | None:
    window: int | None
    if architecture == "MistralForCausalLM":
        window = raw.get("sliding_window", _DEFAULT_WINDOW_TOKENS)
    elif raw.get("layer_types") is not None:
        window = raw.get("sliding_window") if "sliding_attention" in raw["layer_types"] else None
    elif raw.get("use_sliding_window"):
        window = raw.get("sliding_window", _DEFAULT_WINDOW_TOKENS)
    else:
        window = None
    return window
