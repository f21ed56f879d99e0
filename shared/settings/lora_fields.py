"""Settings of LoRA adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from shared.plans import from_json


class LoraFields(BaseModel):
    """Settings of LoRA adapters, for workers and for the API."""

    lora_dir: Path | None = Field(
        None,
        description="folder under which the LoRA adapters of requests must lie; default: adapters are off",
    )
    lora_modules: Annotated[dict[str, str], BeforeValidator(from_json)] = Field(
        {},
        description="adapters of `model` that are registered when a worker starts, as in `[lora_modules]` with "
        '`sql = "sql-adapter"`: the name that requests use, and a folder in `lora_dir`; JSON in the environment',
    )
    max_loras: int = Field(8, ge=1, le=1024, description="maximum adapters in the memory of one worker")
    max_lora_rank: int = Field(64, ge=1, le=4096, description="maximum rank of an adapter's matrices")
    runtime_lora_updating: bool = Field(
        False, description="allow keys with the admin scope to load and unload adapters over HTTP"
    )
