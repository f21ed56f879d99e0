"""Settings of a model repository: a folder of models that one worker serves beside each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator

ModelControl = Literal["none", "poll", "explicit"]
UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(%|[kmgt]ib|)", re.IGNORECASE)


def parse_memory(text: str) -> tuple[float, bool]:
    """Return an amount in bytes, or a share of the machine's memory from 0 to 1 and True. Raises ValueError."""
    found = AMOUNT.fullmatch(text.strip())
    number, unit = (float(found[1]), found[2].lower()) if found else (0.0, "")
    if number <= 0 or (unit == "%" and number > 100):
        raise ValueError("must be a number of bytes, such as 8GiB, or a share of the memory, such as 80%")
    return (number / 100, True) if unit == "%" else (number * UNITS[unit], False)


class RepositoryFields(BaseModel):
    """Settings of the model repository."""

    model_repository: Path | None = Field(
        None,
        description="folder of models in Triton's layout, <model>/<version>/…, that a worker serves beside each "
        "other; without `model`, no other model is served",
    )
    model_control: ModelControl = Field(
        "none",
        description="which models of `model_repository` are loaded, as Triton's --model-control-mode; none: all, "
        "when the worker starts; poll: all, and the folder is watched for changes; explicit: those whose loading "
        "was ordered",
    )
    repository_poll: float = Field(
        15, ge=0.1, le=86_400, description="seconds between looks at `model_repository` with `model_control` poll"
    )
    load_on_demand: bool = Field(
        False,
        description="load a model of `model_repository` when requests wait for it, and unload the least recently "
        "used idle models if `model_memory` needs it; models whose unloading was ordered stay unloaded",
    )
    model_memory: str = Field(
        "80%",
        description="memory for the models of one worker, in bytes, with a unit as in 8GiB, or as a share of the "
        "machine's, as in 80%",
    )

    response_cache_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="memory of one worker for cached responses of the models whose description enables "
        "`response_cache`, in bytes",
    )
    triton_metrics: bool = Field(
        False,
        description="show the statistics of the repository's models, and the load of the machine, under Triton's "
        "names (nv_…) too",
    )

    @field_validator("model_memory")
    @classmethod
    def _is_amount(cls, value: str) -> str:
        parse_memory(value)
        return value
