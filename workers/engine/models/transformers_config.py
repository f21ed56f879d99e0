"""What transformers knows of a checkpoint's architecture, or a refusal; see transformers.py for how it is run.

The model is built without storage and run once, so that its own code says what its attention looks like.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from shared.errors import ConfigError
from workers.engine.kernels import Kernels
from workers.engine.models.decoder import DecoderConfig, parse_token_ids
from workers.engine.models.registry import ARCHITECTURES
from workers.engine.models.transformers import (
    ATTENTION,
    FAILURES,
    Census,
    TransformersDecoder,
    census_step,
    run,
    unsupported,
)
from workers.engine.text.tokenizer import SAFE

ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # of the others a row's angle depends on the longest row
LAYER_TYPES = ("full_attention", "sliding_attention")


def read_transformers_config(folder: Path, raw: dict[str, Any]) -> DecoderConfig:
    """Raises ConfigError for an architecture, or a feature of one, that cannot be right over the paged cache.

    Args:
        raw: the folder's config.json.
    """
    names = raw.get("architectures") or []
    architecture = ", ".join(names) or str(raw.get("model_type", "an unnamed one"))
    _refuse_features(architecture, raw)
    try:
        config = AutoConfig.from_pretrained(folder, **SAFE)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)
    except StrictDataclassError as error:
        raise unsupported(architecture, f"config.json is not as transformers has it ({error})") from error
    except FAILURES as error:
        raise unsupported(
            architecture, f"transformers has no such decoder, nor has Headrace ({', '.join(ARCHITECTURES)})"
        ) from error
    if names and type(model).__name__ not in names:
        raise unsupported(architecture, f"model type {config.model_type} would make it {type(model).__name__}")
    if not model.is_backend_compatible():
        raise unsupported(architecture, "its attention cannot be exchanged")
    _refuse_rope(architecture, config)
    return _decoder_config(architecture, raw, config, _take_census(architecture, model))


def load_transformers(
    folder: Path, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> TransformersDecoder:
    """Raises ConfigError where tensors are missing, left over or of another shape than config.json says."""
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{folder} holds an adapter, not a model", param="model")
    disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            output_loading_info=True,
            **SAFE,
        )
    except FAILURES as error:
        raise ConfigError(f"{folder} cannot be loaded: {error}", param="model") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found.get(kind):
            names = ", ".join(sorted(map(str, found[kind]))[:3])
            raise ConfigError(f"the checkpoint does not fit its architecture; {kind.replace('_', ' ')}: {names}")
    return TransformersDecoder(config, model.to(device), kernels)


def _refuse_features(architecture: str, raw: dict[str, Any]) -> None:
    if raw.get("quantization_config"):
        raise ConfigError("the checkpoint is quantized; take one in float32, bfloat16 or float16", param="model")
    if raw.get("is_encoder_decoder"):
        raise unsupported(architecture, "it has an encoder")
    experts = [name for name, value in raw.items() if "expert" in name and value]
    if experts:
        raise unsupported(architecture, f"mixture-of-experts checkpoints are not ({experts[0]} is set)")
    parts = [name for name, value in raw.items() if name.endswith("_config") and isinstance(value, dict)]
    if parts:
        raise unsupported(architecture, f"it is made of several models ({', '.join(parts)})")
    types = set(raw.get("layer_types") or ()) - set(LAYER_TYPES)
    if types or raw.get("attention_chunk_size"):
        raise unsupported(architecture, f"layers of {', '.join(sorted(types)) or 'chunked attention'} are not")


def _refuse_rope(architecture: str, config: PreTrainedConfig) -> None:
    """One rotary embedding for all layers, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if any(isinstance(value, dict) for value in rope.values()) else [rope]
    for kind in kinds:
        name = (kind or {}).get("rope_type") or "default"
        if name not in ROPE_TYPES:
            raise unsupported(architecture, f"rope type {name} is not, only {', '.join(ROPE_TYPES)}")


def _take_census(architecture: str, model: PreTrainedModel) -> Census:
    census = Census()
    model.config.pad_token_id = None  # looked for in the tokens, which are not there
    try:
        with torch.inference_mode():
            run(model.eval(), census_step(), census)
    except ConfigError as error:
        raise unsupported(architecture, error.message) from error
    except FAILURES as error:
        raise unsupported(architecture, f"its code fails on a flat batch ({error})") from error
    return census


def _decoder_config(
    architecture: str, raw: dict[str, Any], config: PreTrainedConfig, census: Census
) -> DecoderConfig:
    layers = config.num_hidden_layers
    if sorted(census.shapes) != list(range(layers)) or len(set(census.shapes.values())) != 1:
        raise unsupported(architecture, "not every layer has attention of its own, and all of the same shape")
    [(kv_heads, dim)] = set(census.shapes.values())
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise unsupported(architecture, "config.json does not say max_position_embeddings")
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        census.windows.add(int(config.sliding_window))
    return DecoderConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=dim,
        max_position_embeddings=positions,
        sliding_window=min(census.windows, default=None),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=parse_token_ids(raw.get("eos_token_id", getattr(config, "eos_token_id", None))),
    )
