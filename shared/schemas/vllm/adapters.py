"""Loading and unloading of LoRA adapters. Reference: vLLM 0.32, entrypoints/serve/lora/protocol.py."""

from __future__ import annotations

from pydantic import Field

from shared.adapters.adapter import MAX_PATH_CHARS
from shared.models.names import MAX_MODEL_NAME_CHARS
from shared.schemas.base import Body


class LoadAdapterRequest(Body):
    """Body of POST /v1/load_lora_adapter."""

    lora_name: str = Field(
        description="name of the adapter, which requests give as their `model`", max_length=MAX_MODEL_NAME_CHARS
    )
    lora_path: str = Field(
        description="folder of the adapter, absolute or relative to `lora_dir`, in which it must lie",
        max_length=MAX_PATH_CHARS,
    )
    load_inplace: bool = Field(False, description="replace the adapter of that name")
    base_model_name: str | None = Field(
        None, description="the model that it adapts; default: the default model", max_length=MAX_MODEL_NAME_CHARS
    )


class UnloadAdapterRequest(Body):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: str = Field(description="name of the adapter", max_length=MAX_MODEL_NAME_CHARS)
    lora_int_id: int | None = Field(None, description="ignored: adapters have no numbers here")
