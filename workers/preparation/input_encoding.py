"""Encoding of the inputs of models that do not generate: single texts, and pairs of a query and a document."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import EncoderWork, Input, PromptOptions, Request, Score
from workers.engine.interface import Encoder
from workers.engine.pair_form import PairForm
from workers.preparation.encoded_request import EncodedRequest


def encode_inputs(
    encoder: Encoder, request: Request, work: EncoderWork, most_tokens: int, task: Task
) -> EncodedRequest:
    """Encode the texts of a request. A cross-encoder, whose task is to classify, scores pairs.

    Raises:
        InvalidRequest: a text cannot be encoded, or has no tokens.
        ContextLengthExceeded: a text is certain to have more than `most_tokens`.
    """
    inputs = _Inputs(encoder, request.prompt_options, request.prompt_param, most_tokens)
    if not isinstance(work, Score):
        return _joined([inputs.encode(each) for each in work.texts], request.prompt_param)
    if task != "classify":
        limits = (*[work.max_query_tokens] * len(work.queries), *[work.max_document_tokens] * len(work.documents))
        texts = zip(work.texts, limits, strict=True)
        return _joined([inputs.encode(text, limit) for text, limit in texts], request.prompt_param)
    return _encode_pairs(inputs, work)


def _encode_pairs(inputs: _Inputs, work: Score) -> EncodedRequest:
    form = inputs.encoder.pair_form()
    queries = {each: inputs.plain(each, work.max_query_tokens) for each in work.queries}
    pairs, second_starts = [], []
    for query, document in work.pairs:
        first, second = inputs.fit_pair(form, queries[query], inputs.plain(document, work.max_document_tokens))
        pairs.append((*form.before, *first, *form.between, *second, *form.after))
        start = len(form.before) + len(first) + len(form.between)
        second_starts.append(start if form.typed else len(pairs[-1]))
    joined = _joined(pairs, work.document_param)
    return EncodedRequest(joined.prompt, joined.lengths, tuple(second_starts))


class _Inputs:
    """Encodes the texts of one request with its options.

    Args:
        param: the field of the request that errors name.
    """

    def __init__(self, encoder: Encoder, options: PromptOptions, param: str, most_tokens: int) -> None:
        self.encoder = encoder
        self._from_left = options.truncation_side == "left"
        self._special = options.add_special_tokens is not False
        self._param = param
        self._most_tokens = most_tokens
        keep = options.truncate_prompt_tokens
        self._keep = most_tokens if keep == -1 else keep
        self._text_form = cache(encoder.text_form)

    def encode(self, given: Input, limit: int = 0) -> Sequence[int]:
        """Return the tokens of one text, cut to what the request keeps; at most `limit` besides special ones."""
        if not isinstance(given, str):
            return given if self._keep is None else self._cut(given, self._keep)
        if self._keep is None and not limit:
            return self.encoder.encode(
                given, special=self._special, most_tokens=self._most_tokens, param=self._param
            )
        ids = self.plain(given, limit)
        before, after = self._text_form() if self._special else ((), ())
        if self._keep is not None:
            ids = self._cut(ids, self._room(len(before) + len(after)))
        return [*before, *ids, *after]

    def plain(self, text: str, limit: int = 0) -> Sequence[int]:
        """Return the tokens of a text without special ones, the first `limit` if that is not 0."""
        cut = limit or self._keep is not None
        most_tokens = None if cut else self._most_tokens
        ids = self.encoder.encode(text, special=False, most_tokens=most_tokens, param=self._param)
        return ids[:limit] if limit else ids

    def fit_pair(
        self, form: PairForm, first: Sequence[int], second: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Return the texts of a pair as the request's truncation cuts them: the longer one first."""
        if self._keep is None:
            if (size := len(first) + len(second) + form.size) > self._most_tokens:
                raise ContextLengthExceeded(
                    f"this model's maximum input length is {self._most_tokens} tokens, but a pair has {size}",
                    param=self._param,
                )
            return first, second
        room = self._room(form.size)
        shorter = min(len(first), len(second), room // 2)
        if len(first) <= len(second):
            return self._cut(first, shorter), self._cut(second, room - shorter)
        return self._cut(first, room - shorter), self._cut(second, shorter)

    def _room(self, num_special: int) -> int:
        assert self._keep is not None
        if self._keep <= num_special:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be above the number of special tokens, {num_special}",
                param="truncate_prompt_tokens",
            )
        return self._keep - num_special

    def _cut(self, ids: Sequence[int], keep: int) -> Sequence[int]:
        if keep >= len(ids):
            return ids
        return ids[len(ids) - keep :] if self._from_left else ids[:keep]


def _joined(inputs: Sequence[Sequence[int]], param: str) -> EncodedRequest:
    if not all(inputs):
        raise InvalidRequest("each input must have at least one token", param=param)
    return EncodedRequest(tuple(token for each in inputs for token in each), tuple(map(len, inputs)))
