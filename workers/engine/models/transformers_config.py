"""Support for architectures by transformers' code, which transformers.py runs.

The model is built without storage and run once, to find out how its code uses attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from shared.errors import ConfigError
from shared.models.weight_files import GGUF_NAME
from workers.engine.kernels import Kernels
from workers.engine.models.decoder import DecoderConfig, parse_token_ids
from workers.engine.models.gguf.checkpoint import GgufCheckpoint
from workers.engine.models.registry import ARCHITECTURES
from workers.engine.models.stored.interface import refuse_infinite
from workers.engine.models.transformers import (
    ATTENTION,
    TRANSFORMERS_ERRORS,
    AttentionProbe,
    TransformersDecoder,
    probe_step,
    run,
    unsupported,
)
from workers.engine.text.tokenizer import SAFE_LOADING

ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # with others, a row's angle depends on the longest row
LAYER_TYPES = ("full_attention", "sliding_attention")


def read_transformers_config(folder: Path, raw: dict[str, Any]) -> DecoderConfig:
    """Read a config. Raises ConfigError for an architecture or a feature that the paged cache does not support.

    Args:
        raw: the folder's config.json.
    """
    names = raw.get("architectures") or []
    architecture = ", ".join(names) or str(raw.get("model_type", "an unnamed one"))
    _refuse_features(architecture, raw)
    try:
        config = AutoConfig.from_pretrained(folder, **SAFE_LOADING)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)
    except StrictDataclassError as error:
        raise unsupported(architecture, f"transformers refuses its config.json ({error})") from error
    except TRANSFORMERS_ERRORS as error:
        raise unsupported(
            architecture, f"neither transformers nor Headrace ({', '.join(ARCHITECTURES)}) has such a decoder"
        ) from error
    if names and type(model).__name__ not in names:
        raise unsupported(architecture, f"its model type {config.model_type} belongs to {type(model).__name__}")
    if not model.is_backend_compatible():
        raise unsupported(architecture, "its attention cannot be replaced")
    _refuse_rope(architecture, config)
    return _decoder_config(architecture, raw, config, _probe_attention(architecture, model))


def load_transformers(
    folder: Path, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> TransformersDecoder:
    """Load a model. Raises ConfigError where tensors are missing, left over, or not of the shape in config.json."""
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{folder} holds an adapter, not a whole model", param="model")
    disable_progress_bar()
    try:
        loading = _from_gguf if (folder / GGUF_NAME).is_file() else AutoModelForCausalLM.from_pretrained
        model, found = loading(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            output_loading_info=True,
            **SAFE_LOADING,
        )
    except TRANSFORMERS_ERRORS as error:
        raise ConfigError(f"{folder} cannot be loaded: {error}", param="model") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found.get(kind):
            names = ", ".join(sorted(map(str, found[kind]))[:3])
            raise ConfigError(f"the checkpoint does not fit its architecture; {kind.replace('_', ' ')}: {names}")
    return TransformersDecoder(config, model.to(device), kernels)


def _from_gguf(folder: Path, **options: Any) -> Any:
    """Load a model with the tensors of its folder's GGUF file, expanded. Raises ConfigError."""
    gguf = folder / GGUF_NAME
    checkpoint = GgufCheckpoint(gguf)
    tensors = {name: checkpoint.read(name) for name in sorted(checkpoint.unread)}
    for name, tensor in tensors.items():
        refuse_infinite(gguf, name, tensor)
    config = AutoConfig.from_pretrained(folder, **SAFE_LOADING)
    [architecture] = config.architectures
    options = {name: value for name, value in options.items() if name not in SAFE_LOADING}
    return getattr(transformers, architecture).from_pretrained(None, config=config, state_dict=tensors, **options)


def _refuse_features(architecture: str, raw: dict[str, Any]) -> None:
    if raw.get("quantization_config"):
        raise ConfigError(
            "the checkpoint is quantized; only float32, bfloat16 and float16 are supported", param="model"
        )
    if raw.get("is_encoder_decoder"):
        raise unsupported(architecture, "it has an encoder")
    experts = [name for name, value in raw.items() if "expert" in name and value]
    if experts:
        raise unsupported(architecture, f"it is a mixture of experts ({experts[0]} is set)")
    parts = [name for name, value in raw.items() if name.endswith("_config") and isinstance(value, dict)]
    if parts:
        raise unsupported(architecture, f"it consists of several models ({', '.join(parts)})")
    types = set(raw.get("layer_types") or ()) - set(LAYER_TYPES)
    if types or raw.get("attention_chunk_size"):
        raise unsupported(architecture, f"it has layers of {', '.join(sorted(types)) or 'chunked attention'}")


def _refuse_rope(architecture: str, config: PreTrainedConfig) -> None:
    """Raise ConfigError for an unsupported rotary embedding; there is one, or one per type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if any(isinstance(value, dict) for value in rope.values()) else [rope]
    for kind in kinds:
        name = (kind or {}).get("rope_type") or "default"
        if name not in ROPE_TYPES:
            raise unsupported(architecture, f"its rope type is {name}; supported: {', '.join(ROPE_TYPES)}")


def _probe_attention(architecture: str, model: PreTrainedModel) -> AttentionProbe:
    probe = AttentionProbe()
    model.config.pad_token_id = None  # the code would search the tokens for it, which have no storage
    try:
        with torch.inference_mode():
            run(model.eval(), probe_step(), probe)
    except ConfigError as error:
        raise unsupported(architecture, error.message) from error
    except TRANSFORMERS_ERRORS as error:
        raise unsupported(architecture, f"its code fails on a flat batch ({error})") from error
    return probe


def _decoder_config(
    architecture: str, raw: dict[str, Any], config: PreTrainedConfig, probe: AttentionProbe
) -> DecoderConfig:
    layers = config.num_hidden_layers
    if sorted(probe.shapes) != list(range(layers)) or len(set(probe.shapes.values())) != 1:
        raise unsupported(architecture, "not all layers have attention of the same shape")
    [(kv_heads, dim)] = set(probe.shapes.values())
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise unsupported(architecture, "config.json has no valid max_position_embeddings")
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        probe.windows.add(int(config.sliding_window))
    return DecoderConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=dim,
        max_position_embeddings=positions,
        sliding_window=min(probe.windows, default=None),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=parse_token_ids(raw.get("eos_token_id", getattr(config, "eos_token_id", None))),
    )
