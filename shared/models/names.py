"""Names and versions of served models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:  # the command line loads no settings for a name
    from shared.settings import Settings

MAX_MODEL_NAME_CHARS = 128
MODEL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_MODEL_NAME_CHARS - 1}}}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits an int64


def scalable_models(settings: Settings) -> frozenset[str]:
    """Return the models that may have no worker. Raises ConfigError."""
    names = frozenset(name for part in settings.scalable_models.split(",") if (name := part.strip()))
    if wrong := sorted(name for name in names if not MODEL_NAME.fullmatch(name)):
        raise ConfigError(
            f"scalable_models has {wrong[0][:64]!r}, which is no name of a model", param="scalable_models"
        )
    return names
