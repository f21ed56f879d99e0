"""Answers as embeddings: OpenAI's lists, and plain lists of vectors."""

from __future__ import annotations

import struct

from shared.protocol import Request
from shared.schemas.openai.embeddings import Embedding, EmbeddingList, EmbeddingUsage
from shared.token_log.answer import Answer, result_of


def embedding_list(request: Request, answer: Answer, *, base64: bool) -> EmbeddingList:
    """Build the list of embeddings of an answer. Raises the error that the request failed with."""
    vectors = result_of(answer).vectors
    assert answer.terminal is not None
    tokens = answer.terminal.usage.prompt_tokens
    data = [Embedding.from_vector(index, vector, base64=base64) for index, vector in enumerate(vectors)]
    return EmbeddingList(data, request.model, EmbeddingUsage(tokens, tokens))


def vectors(answer: Answer) -> list[list[float]]:
    """Return the vectors of an answer. Raises the error that the request failed with."""
    return [list(struct.unpack(f"<{len(each) // 4}f", each)) for each in result_of(answer).vectors]
