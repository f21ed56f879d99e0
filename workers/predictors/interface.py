"""Interface of a predictor: one instance of a model that takes arrays and returns arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.protocol import Parameter
from shared.repository.spec import ModelSpec

Array = NDArray[Any]  # of the tensor's shape; BYTES as objects of type bytes, BF16 as float32
Arrays = Mapping[str, Array]
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    **{"BOOL": np.dtype(bool), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")},
    **{
        f"{kind}INT{bits}": np.dtype(f"<{letter}{bits // 8}")
        for kind, letter in (("", "i"), ("U", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{"BF16": np.dtype("<f4"), "BYTES": np.dtype(object)},
}


class PredictorLost(Exception):
    """The process of a predictor ended during a call. The predictor starts another one for its next call.

    The message says why, for the caller: the process exceeded its memory budget, or a signal ended it.
    """


@dataclass(frozen=True)
class Execution:
    """One execution of a predictor: the joined inputs of requests, and the parameters that these have in common.

    Attributes:
        inputs: by name; with a batch dimension if the model's max_batch_size is above 0. They may be read-only.
        outputs: names of the wanted outputs; empty for all.
        parameters: of the requests; only requests with equal ones are joined.
    """

    inputs: Arrays
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


class Predictor(Protocol):
    """One instance of a model. One thread at a time calls it.

    Raises HeadraceError of the request at fault, PredictorLost, or any other exception for a failure of the model's
    own. A failed execution of several requests is repeated for each of them alone.
    """

    @property
    def memory_bytes(self) -> int:
        """Estimate of the memory that it needs."""

    def predict(self, call: Execution) -> Arrays:
        """Execute once. Return the outputs by name."""

    def stream(self, call: Execution) -> Iterator[Arrays]:
        """Execute a decoupled model: yield each response."""

    def close(self) -> None: ...


class PredictorModule(Protocol):
    """A module of this package that loads the models of one framework."""

    def complete(self, spec: ModelSpec, folder: Path) -> ModelSpec:
        """Return the description with what the model's file says, where the repository says nothing.

        Raises ConfigError if they contradict each other.
        """

    def load(self, spec: ModelSpec, folder: Path, *, threads: int | None) -> Predictor:
        """Load one instance from the folder of a version. Raises ConfigError that says why it cannot be loaded.

        Args:
            spec: a completed description, whose only instance group is that of the instance (`instance_specs`).
            threads: for one execution; None for the framework's default.
        """
