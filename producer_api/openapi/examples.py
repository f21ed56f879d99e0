"""Model names in the example bodies that endpoints declare for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SERVED_MODEL = "<served model>"  # stands for the server's default model
EMBEDDING_MODEL = "<embedding model>"  # stands for the server's model of embeddings
CLASSIFICATION_MODEL = "<classification model>"  # stands for a model that the reader has to name


def filled(body: Mapping[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """Return an example body that can be sent to this server: placeholders become names of `models`."""
    return {name: models[value] if name == "model" else value for name, value in body.items()}
