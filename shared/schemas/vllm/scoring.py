"""Scores of pairs, and documents sorted by them: the bodies and the answers.

References: vLLM 0.32, entrypoints/pooling/scoring; Cohere's and Jina's rerank APIs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import Request, Score
from shared.schemas.base import Body, refuse_unless_neutral
from shared.schemas.encoder_fields import EncoderFields, shares
from shared.schemas.neutral_fields import Unsupported
from shared.schemas.openai.embeddings import EmbeddingUsage
from shared.schemas.openapi_bounds import LIMITS
from shared.validation.encoder_work import check_counts
from shared.validation.sampling_parameters import MAX_TOKEN_ID

QUERIES = ("queries", "text_1", "data_1")
DOCUMENTS = ("documents", "items", "text_2", "data_2")
NO_TEMPLATE = "scores are computed without a chat template, so there is no place for it"


def _texts(value: Any) -> Any:
    """Return one text or several as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value or len(value) > LIMITS.inputs:
        raise PydanticCustomError(
            "texts", "must be a text, or a list of 1 to {maximum} texts", {"maximum": LIMITS.inputs}
        )
    if not all(isinstance(each, str) for each in value):
        raise PydanticCustomError("texts", "must be a text, or a list of texts; images are not supported")
    return value


_TEXT = {"type": "string", "maxLength": LIMITS.prompt_chars}
Texts = Annotated[
    Any,
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": LIMITS.inputs}]}),
]
TokenLimit = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


class ScoringFields(EncoderFields):
    """Fields of all requests for scores."""

    max_tokens_per_query: TokenLimit | None = Field(
        None, description="cut queries to this many tokens; 0: no limit"
    )
    max_tokens_per_doc: TokenLimit | None = Field(
        None, description="cut documents to this many tokens; 0: no limit"
    )
    use_activation: bool | None = Field(
        None, description="apply the activation of a cross-encoder, usually the logistic function; default true"
    )
    instruction: Unsupported = None
    chat_template_kwargs: Unsupported = None

    _refuse_template = refuse_unless_neutral(
        {"instruction": (None, ""), "chat_template_kwargs": (None, {})}, NO_TEMPLATE
    )

    def _given(self, struct: type[msgspec.Struct], besides: Iterable[str] = ()) -> dict[str, Any]:
        """Return the values of a struct. The documents are not those of a chat template."""
        return super()._given(struct, (*besides, "documents"))

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], params: tuple[str, str], tenant: str
    ) -> list[Request]:
        """Return drafts that share the documents; `params` are the fields of queries and documents, for errors."""
        own_queries = len(queries) == len(documents)
        activation = self.use_activation is not False
        bounds = (self.max_tokens_per_query or 0, self.max_tokens_per_doc or 0)
        asked = shares(queries) if own_queries else repeat(tuple(queries))
        works = (
            Score(mine, share, activation, *bounds, *params)
            for mine, share in zip(asked, shares(documents), strict=own_queries)
        )
        return self.drafts(works, tenant)


class ScoreRequest(ScoringFields):
    """Body of POST /score: one query for all documents, or one for each."""

    queries: Texts = Field(None, description="the first text of each pair, or one for all; or text_1, data_1")
    text_1: Texts = Field(None, description="another name of queries")
    data_1: Texts = Field(None, description="another name of queries")
    documents: Texts = Field(None, description="the second text of each pair; or items, text_2, data_2")
    items: Texts = Field(None, description="another name of documents")
    text_2: Texts = Field(None, description="another name of documents")
    data_2: Texts = Field(None, description="another name of documents")

    def to_requests(self, tenant: str) -> list[Request]:
        query, document = self._named(QUERIES), self._named(DOCUMENTS)
        queries, documents = getattr(self, query), getattr(self, document)
        check_counts((query, len(queries)), (document, len(documents)))
        return self.scores(queries, documents, (query, document), tenant)

    def _named(self, names: Sequence[str]) -> str:
        """Return the only name of a field that is given."""
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"exactly one of {', '.join(names)} is required", param=given[-1] if given else names[0]
            )
        return given[0]


class RankedText(Body):
    """A document as an object; its other fields are ignored."""

    text: str


def _listed(value: Any) -> Any:
    """Return one text as a list."""
    return [value] if isinstance(value, str) else value


Documents = Annotated[
    list[str | RankedText],
    Field(min_length=1, max_length=LIMITS.inputs, fail_fast=True),
    BeforeValidator(_listed),
]


class RerankRequest(ScoringFields):
    """Body of POST /rerank."""

    query: str = Field(description="the text that documents are compared with")
    documents: Documents = Field(description="texts, or objects with a text")
    top_n: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] | None = Field(
        None, description="return the first documents only; default, and for 0: all"
    )
    return_documents: bool | None = Field(None, description="return the texts too; default true, as vLLM does")

    @property
    def texts(self) -> list[str]:
        return [each if isinstance(each, str) else each.text for each in self.documents]

    def to_requests(self, tenant: str) -> list[Request]:
        return self.scores([self.query], self.texts, ("query", "documents"), tenant)


class ScoreObject(msgspec.Struct):
    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreList(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[ScoreObject]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class RankedDocument(msgspec.Struct):
    text: str


class RankedResult(msgspec.Struct):
    """A document; `index` is its place in the request."""

    index: int
    relevance_score: float
    document: RankedDocument | msgspec.UnsetType = msgspec.UNSET


class RankedList(msgspec.Struct):
    """Documents, the most relevant first."""

    id: str
    model: str
    usage: EmbeddingUsage
    results: list[RankedResult]
