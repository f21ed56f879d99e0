"""Settings of a model with the backend "headrace": the worker's, with what the model's description changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import ConfigError
from shared.models.weight_files import GGUF_SUFFIX
from shared.repository.spec import ModelSpec
from shared.settings import Settings
from shared.settings.engine_fields import EngineFields
from shared.settings.health_fields import HealthFields
from shared.settings.runtime_fields import RuntimeFields

CHANGEABLE = {
    "model",
    "warmup_requests",
    *EngineFields.model_fields,
    *HealthFields.model_fields,
    *(RuntimeFields.model_fields.keys() - {"worker_python", "mixed_workers"}),
}


def _model_of(spec: ModelSpec, version: Path) -> Path:
    """Return the folder of a version, or the GGUF file in it that the description names."""
    name = spec.default_model_filename
    return version / name if name.endswith(GGUF_SUFFIX) else version


def model_settings(settings: Settings, spec: ModelSpec, version: Path) -> Settings:
    """Return the settings with which a version is loaded. Raises ConfigError for one that a model cannot change."""
    if unknown := sorted(spec.settings.keys() - CHANGEABLE):
        raise ConfigError(
            f"{spec.name}: {unknown[0]} is not a setting that a model can change; these are "
            f"{', '.join(sorted(CHANGEABLE))}",
            param=unknown[0],
        )
    given: dict[str, Any] = {name: getattr(settings, name) for name in Settings.model_fields}
    own = {
        "model": str(_model_of(spec, version)),
        "served_model_name": spec.name,
        "embedding_model": None,
        "model_repository": None,
    }
    try:
        return Settings(**{**given, **own, **spec.settings})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{spec.name}: {name}: {reason}", param=name) from None
