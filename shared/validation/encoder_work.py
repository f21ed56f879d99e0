"""Bounds on the work of models that do not generate."""

from __future__ import annotations

from shared.errors import InvalidRequest
from shared.protocol import Embed, EncoderWork, Score
from shared.validation.parameter_definition import MAX_SHOWN_CHARS
from shared.validation.request_parameters import DIMENSIONS
from shared.validation.sampling_parameters import MAX_TOKEN_ID


def check_encoder_work(work: EncoderWork, *, inputs: int, chars: int) -> None:
    """Raise InvalidRequest, naming the field, for the first field that is out of bounds.

    Args:
        inputs: most inputs, or documents.
        chars: most characters and token ids of all texts.
    """
    if isinstance(work, Score):
        _check_score(work)
        name, count = work.document_param, len(work.documents)
    else:
        name, count = "input", len(work.inputs)
        if not all(work.inputs):
            raise InvalidRequest("input and each of its entries must not be empty", param="input")
    if not count:
        raise InvalidRequest(f"{name} must not be empty", param=name)
    if count > inputs:
        raise InvalidRequest(f"{name} must have at most {inputs} entries", param=name)
    if sum(map(len, work.texts)) > chars:
        raise InvalidRequest(f"{name} must have at most {chars} characters or token ids in all", param=name)
    if isinstance(work, Embed) and work.dimensions is not None:
        DIMENSIONS.check_range(work.dimensions)


def check_counts(queries: tuple[str, int], documents: tuple[str, int]) -> None:
    """Raise InvalidRequest unless there is one query, or one for each document; given each field and its number."""
    name, count = queries
    if count not in (1, documents[1]):
        raise InvalidRequest(
            f"{name} must have 1 entry, or as many as {documents[0]}, {documents[1]}; got {count}", param=name
        )


def _check_score(work: Score) -> None:
    check_counts((work.query_param, len(work.queries)), (work.document_param, len(work.documents)))
    for name, limit in (
        ("max_tokens_per_query", work.max_query_tokens),
        ("max_tokens_per_doc", work.max_document_tokens),
    ):
        if not 0 <= limit <= MAX_TOKEN_ID:
            shown = str(limit)[:MAX_SHOWN_CHARS]
            raise InvalidRequest(f"{name} must be between 0 and {MAX_TOKEN_ID}, got {shown}", param=name)
