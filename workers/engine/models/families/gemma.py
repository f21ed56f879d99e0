"""config.json of Gemma 2 and Gemma 3."""

from __future__ import annotations

from typing import Any

from shared.errors import ConfigError
from workers.engine.kernels import Activation
from workers.engine.models.llama_config import (
    LlamaModelConfig,
    RopeConfig,
    layer_windows,
    read_integer,
    read_number,
    read_rope,
)

# transformers' defaults for fields that checkpoints leave out
_DEFAULTS: dict[str, Any] = {"head_dim": 256, "tie_word_embeddings": True}
_DEFAULT_QUERY_SCALAR = 256
_DEFAULT_WINDOW_TOKENS = 4096
_GEMMA2 = {"max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_GEMMA3 = {"max_position_embeddings": 131_072}
_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0  # of Gemma 3


def parse_gemma2(architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
    """Parse config.json. Raises ConfigError for a feature that the model code does not compute."""
    return _parse(architecture, {**_DEFAULTS, **_GEMMA2, **raw}, period=2, qk_norm=False, rope=read_rope(raw))


def parse_gemma3(architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
    """Parse config.json of a text model. Raises ConfigError for a feature that the model code does not compute."""
    raw = {**_DEFAULTS, **_GEMMA3, **raw}
    rope, local_rope = _ropes(raw)
    period = read_integer(raw, "sliding_window_pattern", 6)
    return _parse(architecture, raw, period, qk_norm=True, rope=rope, local_rope=local_rope)


def _parse(architecture: str, raw: dict[str, Any], period: int, **features: Any) -> LlamaModelConfig:
    """Parse what both have in common. Every `period`-th layer sees all positions unless `layer_types` are given."""
    if raw.get("use_bidirectional_attention"):
        raise ConfigError("config.json: use_bidirectional_attention is not supported")
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or "gelu_pytorch_tanh"
    if activation != "gelu_pytorch_tanh":
        raise ConfigError(f"config.json: hidden_activation must be gelu_pytorch_tanh, got {activation}")
    local = [bool((index + 1) % period) for index in range(read_integer(raw, "num_hidden_layers"))]
    return LlamaModelConfig.read(
        architecture,
        raw,
        windows=layer_windows(raw, raw.get("sliding_window", _DEFAULT_WINDOW_TOKENS), local),
        query_scalar=read_number(raw, "query_pre_attn_scalar", _DEFAULT_QUERY_SCALAR),
        score_cap=_cap(raw, "attn_logit_softcapping"),
        logit_cap=_cap(raw, "final_logit_softcapping"),
        activation=Activation.GELU_TANH,
        norm_offset=1.0,
        wide_norms=True,
        post_norms=True,
        embedding_scale=read_integer(raw, "hidden_size") ** 0.5,
        **features,
    )


def _cap(raw: dict[str, Any], name: str) -> float | None:
    return None if raw.get(name) is None else read_number(raw, name, 0.0)


def _ropes(raw: dict[str, Any]) -> tuple[RopeConfig, RopeConfig]:
    """Return the rotary embeddings of layers without and with a window.

    Both spellings are known: rope_parameters for each type of layer, or rope_theta, rope_scaling and
    rope_local_base_freq.
    """
    given = raw.get("rope_parameters")
    if not isinstance(given, dict) or "full_attention" not in given:
        given = {"full_attention": given or raw.get("rope_scaling") or {}, "sliding_attention": {}}
    thetas = {
        "full_attention": raw.get("rope_theta") or _GLOBAL_THETA,
        "sliding_attention": raw.get("rope_local_base_freq") or _LOCAL_THETA,
    }
    rope, local_rope = (
        read_rope({**raw, "rope_scaling": None, "rope_theta": theta, "rope_parameters": given.get(name)})
        for name, theta in thetas.items()
    )
    return rope, local_rope
