"""Answers of models that do not generate: vectors, classes and scores, in the words of each API."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, tanh

import msgspec

from producer_api.schemas.text_classification import TextClassificationRequest
from shared.protocol import Request
from shared.schemas.openai.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from shared.schemas.vector_fields import numbers
from shared.schemas.vllm.classify import Classification, ClassificationList, ClassifyRequest
from shared.schemas.vllm.pooling import Pooled, PooledList, PoolingRequest
from shared.schemas.vllm.scoring import (
    RankedDocument,
    RankedList,
    RankedResult,
    RerankRequest,
    ScoreList,
    ScoreObject,
    ScoreRequest,
)
from shared.token_log.answer import Answer, result_of


class LabelScore(msgspec.Struct):
    """Score of one class."""

    label: str
    score: float


def embedding_list(body: EmbeddingRequest, request: Request, answer: Answer) -> EmbeddingList:
    """Build the list of embeddings of an answer. Raises the error that the request failed with."""
    vectors = result_of(answer).vectors
    data = [Embedding(index, body.shown(vector)) for index, vector in enumerate(vectors)]
    return EmbeddingList(data, request.model, _usage(answer))


def pooled_list(body: PoolingRequest, request: Request, answer: Answer) -> PooledList:
    """Build the list of outputs. Raises the error that the request failed with."""
    result = result_of(answer)
    data = [
        Pooled(index, _in_rows(body.shown(vector), result.width)) for index, vector in enumerate(result.vectors)
    ]
    return PooledList(_id("pool", request), int(request.created_at), request.model, data, _usage(answer))


def classification_list(_: ClassifyRequest, request: Request, answer: Answer) -> ClassificationList:
    """Build the list of classes. Raises the error that the request failed with."""
    result = result_of(answer)
    data = []
    for index, probs in enumerate(map(numbers, result.vectors)):
        label = result.labels[probs.index(max(probs))]
        data.append(Classification(index, label, probs, len(probs)))
    return ClassificationList(
        _id("classify", request), int(request.created_at), request.model, data, _usage(answer)
    )


def vectors(answer: Answer) -> list[list[float]]:
    """Return the vectors of an answer. Raises the error that the request failed with."""
    return [numbers(vector) for vector in result_of(answer).vectors]


def label_scores(body: TextClassificationRequest, answer: Answer) -> list[list[LabelScore]]:
    """Return the classes of each input, the likeliest first. Raises the error that the request failed with."""
    result, function = result_of(answer), FUNCTIONS.get(body.chosen_function or "none", list)
    found = []
    for vector in result.vectors:
        ranked = sorted(map(LabelScore, result.labels, function(numbers(vector))), key=lambda each: -each.score)
        found.append(ranked[: body.top_k])
    return found


def _softmax(scores: list[float]) -> list[float]:
    weights = [exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _sigmoid(scores: list[float]) -> list[float]:
    return [(1 + tanh(score / 2)) / 2 for score in scores]


FUNCTIONS = {"softmax": _softmax, "sigmoid": _sigmoid}


def score_list(_: ScoreRequest, request: Request, answer: Answer) -> ScoreList:
    """Build the list of scores. Raises the error that the request failed with."""
    data = [ScoreObject(index, score) for index, score in enumerate(_scores(answer))]
    return ScoreList(_id("score", request), int(request.created_at), request.model, data, _usage(answer))


def ranked_list(body: RerankRequest, request: Request, answer: Answer) -> RankedList:
    """Build the sorted list of documents. Raises the error that the request failed with."""
    texts, shown = body.texts, body.return_documents is not False
    results = [
        RankedResult(index, score, RankedDocument(texts[index]) if shown else msgspec.UNSET)
        for index, score in enumerate(_scores(answer))
    ]
    results.sort(key=lambda each: -each.relevance_score)
    return RankedList(_id("rerank", request), request.model, _usage(answer), results[: body.top_n or None])


def _scores(answer: Answer) -> Sequence[float]:
    return [score for vector in result_of(answer).vectors for score in numbers(vector)]


def _in_rows(shown: list[float] | str, width: int) -> list[float | list[float]] | str:
    """Return numbers in rows of `width`, or as they are if that is 0 or they are encoded."""
    if isinstance(shown, str):
        return shown
    return [shown[first : first + width] for first in range(0, len(shown), width)] if width else [*shown]


def _id(prefix: str, request: Request) -> str:
    return f"{prefix}-{request.id.removeprefix('req_')}"


def _usage(answer: Answer) -> EmbeddingUsage:
    assert answer.terminal is not None
    tokens = answer.terminal.usage.prompt_tokens
    return EmbeddingUsage(tokens, tokens)
