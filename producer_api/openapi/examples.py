"""Model names in the example bodies that endpoints declare for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SERVED_MODEL = "<served model>"  # stands for the server's default model
EMBEDDING_MODEL = "<embedding model>"  # stands for the server's model of embeddings
CLASSIFICATION_MODEL = "<classification model>"  # stands for a model that the reader has to name


def filled(body: Mapping[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """Return an example body that can be sent to this server: placeholders become names of `models`."""

    def value_of(name: str, value: Any) -> Any:
        if name == "model":
            return models[value]
        return filled(value, models) if isinstance(value, Mapping) else value

    return {name: value_of(name, value) for name, value in body.items()}
