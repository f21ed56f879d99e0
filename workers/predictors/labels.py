"""Names of the classes of a model's outputs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.model_files import read_model_file


def with_labels(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Return the description with the labels of its label files, in the model's folder. Raises ConfigError."""
    return msgspec.structs.replace(spec, outputs=tuple(_with_labels(output, folder) for output in spec.outputs))


def _with_labels(output: TensorSpec, folder: Path) -> TensorSpec:
    if not output.label_filename:
        return output
    try:
        labels = read_model_file(folder, output.label_filename).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{output.label_filename}, the labels of output {output.name}, must be UTF-8") from error
    return msgspec.structs.replace(output, labels=tuple(labels))
