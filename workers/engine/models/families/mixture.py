"""config.json of mixtures of experts: Mixtral and Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from shared.errors import ConfigError
from workers.engine.models.llama_config import (
    ExpertNames,
    ExpertsConfig,
    LlamaModelConfig,
    layer_windows,
    read_integer,
    read_rope,
    require,
)

MIXTRAL_NAMES = ExpertNames("block_sparse_moe", "gate", "w1", "w3", "w2")
QWEN_NAMES = ExpertNames("mlp", "gate", "gate_proj", "up_proj", "down_proj")
_MIXTRAL_THETA = 1_000_000.0  # transformers' default
_QWEN_WINDOW_TOKENS = 4096  # transformers' default


def parse_mixtral(architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
    """Parse config.json. Raises ConfigError for a feature that the model code does not compute."""
    require(raw, "hidden_act", "silu")
    layers = read_integer(raw, "num_hidden_layers")
    return LlamaModelConfig.read(
        architecture,
        raw,
        qk_norm=False,
        rope=read_rope({**raw, "rope_theta": raw.get("rope_theta") or _MIXTRAL_THETA}),
        windows=_windows(raw, raw.get("sliding_window")),
        experts=ExpertsConfig(
            names=MIXTRAL_NAMES,
            size=read_integer(raw, "intermediate_size"),
            layers=frozenset(range(layers)),
            normalized=True,
            **read_experts(raw),
        ),
    )


def parse_qwen3_moe(architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
    """Parse config.json. Raises ConfigError for a feature that the model code does not compute."""
    require(raw, "hidden_act", "silu")
    layers = read_integer(raw, "num_hidden_layers")
    window = raw.get("sliding_window", _QWEN_WINDOW_TOKENS) if raw.get("use_sliding_window") else None
    step, dense = read_integer(raw, "decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ConfigError(f"config.json: mlp_only_layers must be a list of layers, got {dense!r}")
    return LlamaModelConfig.read(
        architecture,
        raw,
        qk_norm=True,
        rope=read_rope(raw),
        windows=_windows(raw, window),
        experts=ExpertsConfig(
            names=QWEN_NAMES,
            size=read_integer(raw, "moe_intermediate_size"),
            layers=frozenset(index for index in range(layers) if index not in dense and (index + 1) % step == 0),
            normalized=bool(raw.get("norm_topk_prob", False)),
            **read_experts(raw),
        ),
    )


def _windows(raw: dict[str, Any], window: int | None) -> list[int | None]:
    """Return the window of each layer: all layers have the same."""
    return layer_windows(raw, window, [window is not None] * read_integer(raw, "num_hidden_layers"))


def read_experts(raw: dict[str, Any]) -> dict[str, int]:
    """Return the number of experts, and of those that compute a row. Raises ConfigError."""
    count = read_integer({"num_experts": raw.get("num_local_experts") or raw.get("num_experts")}, "num_experts")
    chosen = read_integer(raw, "num_experts_per_tok")
    if chosen > count:
        raise ConfigError(f"config.json: num_experts_per_tok must be at most num_experts {count}, got {chosen}")
    return {"count": count, "chosen": chosen}
