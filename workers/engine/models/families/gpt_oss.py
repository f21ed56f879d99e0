"""config.json of gpt-oss."""

from __future__ import annotations

from typing import Any

from workers.engine.kernels import SWIGLU_LIMIT, SWIGLU_STEEPNESS, Activation
from workers.engine.models.families.mixture import read_experts
from workers.engine.models.llama_config import (
    ExpertNames,
    ExpertsConfig,
    LlamaModelConfig,
    layer_windows,
    read_integer,
    read_rope,
    require,
)

NAMES = ExpertNames("mlp", "router", "gate_up_proj", "gate_up_proj", "down_proj", stacked=True)
_DEFAULT_WINDOW_TOKENS = 128
_DEFAULTS: dict[str, Any] = {"head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 150_000.0}


def parse_gpt_oss(architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
    """Parse config.json. Raises ConfigError for a feature that the model code does not compute."""
    for name, value in (("hidden_act", "silu"), ("swiglu_alpha", SWIGLU_STEEPNESS), ("swiglu_limit", SWIGLU_LIMIT)):
        require(raw, name, value)
    raw = {**_DEFAULTS, **raw}
    layers = read_integer(raw, "num_hidden_layers")
    return LlamaModelConfig.read(
        architecture,
        raw,
        qk_norm=False,
        rope=read_rope(raw),
        windows=layer_windows(
            raw, raw.get("sliding_window", _DEFAULT_WINDOW_TOKENS), [index % 2 == 0 for index in range(layers)]
        ),
        activation=Activation.CLAMPED_SWIGLU,
        wide_norms=True,
        sinks=True,
        experts=ExpertsConfig(
            names=NAMES,
            size=read_integer(raw, "intermediate_size"),
            layers=frozenset(range(layers)),
            normalized=True,
            **read_experts(raw),
        ),
    )
