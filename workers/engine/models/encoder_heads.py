"""Heads of encoders: from the outputs of one input's tokens to a vector, to scores of classes, or to one of these
for each token.

A head computes one input at a time, so its bits do not depend on other inputs.
References: sentence-transformers for pooling and cosine; transformers for classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor
from torch.nn.functional import linear, normalize

from shared.errors import InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import Embed, EncoderWork, Pool, Score

Pooling = Literal["mean", "cls"]
Activation = Callable[[Tensor], Tensor]


class Head(Protocol):
    """Head of one model.

    Attributes:
        task: of the model.
        labels: names of its classes; empty for vectors.
    """

    @property
    def task(self) -> Task: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def check(self, work: EncoderWork) -> None:
        """Raise InvalidRequest for work that the model cannot do."""

    def row_size(self, work: EncoderWork) -> int:
        """Return the number of numbers in the output of one token, or 0 if a whole input has one output."""

    def output(self, hidden: Tensor, work: EncoderWork) -> Tensor:
        """Return the output [N], or [tokens, N], of one input whose tokens have the outputs [tokens, hidden]."""

    def results(self, outputs: Sequence[Tensor], work: EncoderWork) -> Sequence[Tensor]:
        """Return the results of the work, given the outputs of all its inputs."""


@dataclass(frozen=True)
class EmbeddingHead:
    """Vectors: the pooled outputs of the tokens."""

    pooling: Pooling
    dimensions: int
    task: Task = "embed"
    labels: tuple[str, ...] = ()

    def check(self, work: EncoderWork) -> None:
        if isinstance(work, Embed) and work.dimensions is not None and work.dimensions > self.dimensions:
            raise InvalidRequest(
                f"dimensions must be at most {self.dimensions}, got {work.dimensions}", param="dimensions"
            )

    def row_size(self, work: EncoderWork) -> int:
        return self.dimensions if isinstance(work, Pool) and work.task == "token_embed" else 0

    def output(self, hidden: Tensor, work: EncoderWork) -> Tensor:
        pooled = hidden.mean(0) if self.pooling == "mean" else hidden[0]
        found = hidden if self.row_size(work) else pooled
        if isinstance(work, Embed):
            found = found[: work.dimensions]
        return normalize(found, dim=-1) if work.activation or isinstance(work, Score) else found

    def results(self, outputs: Sequence[Tensor], work: EncoderWork) -> Sequence[Tensor]:
        """Return the vectors, or the cosines of those of queries and documents."""
        if not isinstance(work, Score):
            return outputs
        queries, documents = outputs[: len(work.queries)], outputs[len(work.queries) :]
        return [(queries[i % len(queries)] @ document)[None] for i, document in enumerate(documents)]


@dataclass(frozen=True)
class Dense:
    """Linear layer in float32, and the function that follows it."""

    weight: Tensor
    bias: Tensor
    then: Activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.then(linear(x, self.weight, self.bias))


@dataclass(frozen=True)
class ClassifierHead:
    """Scores of classes, for each token or for the whole input, which its first token stands for.

    Attributes:
        layers: from a token's output to the scores.
        activation: from scores to what is returned by default, usually probabilities.
    """

    labels: tuple[str, ...]
    layers: tuple[Dense, ...]
    activation: Activation
    per_token: bool
    task: Task = "classify"

    def check(self, work: EncoderWork) -> None:
        if isinstance(work, Score) and (self.per_token or len(self.labels) > 1):
            raise InvalidRequest(
                "scores need an embedding model, or a classifier of whole texts with one label; this one has "
                f"{len(self.labels)} labels{' for tokens' if self.per_token else ''}",
                param="model",
            )
        own = "token_classify" if self.per_token else "classify"
        if isinstance(work, Pool) and work.task not in (None, own):
            raise InvalidRequest(f"the task of this model is {own}, got {work.task}", param="task")

    def row_size(self, work: EncoderWork) -> int:
        return len(self.labels) if self.per_token else 0

    def output(self, hidden: Tensor, work: EncoderWork) -> Tensor:
        scores = hidden if self.per_token else hidden[0]
        for layer in self.layers:
            scores = layer(scores)
        return self.activation(scores) if work.activation else scores

    def results(self, outputs: Sequence[Tensor], work: EncoderWork) -> Sequence[Tensor]:
        return outputs
