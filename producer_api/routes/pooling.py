"""vLLM's APIs of models that do not generate: scores, sorted documents, classes, and outputs as they are."""

from __future__ import annotations

from functools import partial

from producer_api.answers.encoder_call import EncoderCall
from producer_api.answers.encoders import classification_list, pooled_list, ranked_list, score_list
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.openapi.examples import CLASSIFICATION_MODEL, EMBEDDING_MODEL
from producer_api.openapi.parameters import IDEMPOTENCY
from shared.schemas.vllm.classify import ClassificationList, ClassifyRequest
from shared.schemas.vllm.pooling import PooledList, PoolingRequest
from shared.schemas.vllm.scoring import RankedList, RerankRequest, ScoreList, ScoreRequest

SCORES = EncoderCall("score", ScoreRequest, score_list)
RANKS = EncoderCall("rerank", RerankRequest, ranked_list)
CLASSES = EncoderCall("classification", ClassifyRequest, classification_list)
OUTPUTS = EncoderCall("pooling", PoolingRequest, pooled_list)

_endpoint = partial(
    Endpoint,
    "POST",
    group="pooling",
    errors=OPENAI,  # as vLLM has it
    charged=True,
    tag="Pooling",
    parameters=[IDEMPOTENCY],
    failures=(400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
)
_score = partial(
    _endpoint,
    handler=SCORES.create,
    batchable=SCORES.parse,
    summary="Score pairs of texts",
    body=ScoreRequest,
    responses=(ResponseDoc("a score for each pair", ScoreList),),
    examples={
        "One query": {
            "model": EMBEDDING_MODEL,
            "queries": "What drives a mill?",
            "documents": ["Water turns its wheel.", "The court adjourned."],
        },
        "Pairs": {"model": EMBEDDING_MODEL, "text_1": ["mill", "court"], "text_2": ["wheel", "judge"]},
    },
)
_rerank = partial(
    _endpoint,
    handler=RANKS.create,
    batchable=RANKS.parse,
    summary="Sort documents by their relevance for a query",
    body=RerankRequest,
    responses=(ResponseDoc("the documents, the most relevant first", RankedList),),
    examples={
        "The best of two": {
            "model": EMBEDDING_MODEL,
            "query": "What drives a mill?",
            "documents": ["The court adjourned.", {"text": "Water turns its wheel."}],
            "top_n": 1,
        }
    },
)
ENDPOINTS = (
    *(_score(path=path) for path in ("/v1/score", "/score")),
    *(_rerank(path=path) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
    _endpoint(
        path="/classify",
        handler=CLASSES.create,
        batchable=CLASSES.parse,
        summary="Classify texts",
        body=ClassifyRequest,
        responses=(ResponseDoc("the classes of each text", ClassificationList),),
        examples={"Two texts": {"model": CLASSIFICATION_MODEL, "input": ["I like it.", "Not for me."]}},
    ),
    _endpoint(
        path="/pooling",
        handler=OUTPUTS.create,
        batchable=OUTPUTS.parse,
        summary="Get the outputs of an encoder for texts or for their tokens",
        body=PoolingRequest,
        responses=(ResponseDoc("vectors or scores of classes for each text", PooledList),),
        examples={
            "A vector": {"model": EMBEDDING_MODEL, "input": "a mill wheel", "encoding_format": "base64"},
            "A vector for each token": {"model": EMBEDDING_MODEL, "input": "a mill", "task": "token_embed"},
        },
    ),
)
