"""Histograms of the requests of one model and class, which each of its requests carries."""

from __future__ import annotations

from typing import NamedTuple

from shared.metrics import worker as declared
from shared.metrics.series import Distribution

OF_REQUEST = (
    *(declared.QUEUE_SECONDS, declared.FIRST_SECONDS, declared.BETWEEN_SECONDS, declared.PER_TOKEN_SECONDS),
    *(declared.PREFILL_SECONDS, declared.DECODE_SECONDS, declared.INFERENCE_SECONDS, declared.REQUEST_SECONDS),
    *(declared.PROMPT_TOKENS, declared.COMPLETION_TOKENS, declared.MAX_TOKENS, declared.NUM_CHOICES),
)


class RequestSeries(NamedTuple):
    """The histograms of OF_REQUEST, in that order."""

    queue: Distribution
    first: Distribution
    between: Distribution
    per_token: Distribution
    prefill: Distribution
    decode: Distribution
    inference: Distribution
    whole: Distribution
    prompt_tokens: Distribution
    completion_tokens: Distribution
    max_tokens: Distribution
    choices: Distribution
