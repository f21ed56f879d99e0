"""The output of tree ensembles, by the parameters of Triton's FIL backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.errors import ConfigError
from shared.numbers import decimal
from shared.repository.spec import ModelSpec
from workers.predictors.frameworks import parameters
from workers.predictors.interface import Array

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Scores:
    """Form of the scores: as the model computes them, as the probabilities of all classes, or as the best class.

    `threshold` is the least probability of the second class of two.
    """

    output_class: bool
    predict_proba: bool
    threshold: float

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Scores:
        """Raises ConfigError."""
        threshold = spec.parameters.get("threshold", str(DEFAULT_THRESHOLD))
        value = decimal(threshold)
        if value is None:
            raise ConfigError(
                f"parameter threshold of model {spec.name} must be a number, got {threshold[:64]!r}",
                param="threshold",
            )
        return cls(parameters.flag(spec, "output_class"), parameters.flag(spec, "predict_proba"), value)

    def convert(self, scores: Array) -> Array:
        """Return the scores of rows, or of rows and classes, in this form."""
        if self.predict_proba:
            return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores
        if self.output_class:
            found = scores >= self.threshold if scores.ndim == 1 else scores.argmax(axis=1)
            return found.astype("f4")
        return scores
