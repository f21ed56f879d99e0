"""The names of topics and groups.

| topic | records | written by |
| --- | --- | --- |
| headrace.requests.<model> | requests of others, their class by header | anybody |
| headrace.api.<model> | requests that came by HTTP, with `queue` kafka | API |
| headrace.results | results, unless the request's `reply-topic` names another topic | worker |
| headrace.dlq | records that were no requests, as they came, with the reason | worker |
"""

from __future__ import annotations

import hashlib
import re

RESULTS = "headrace.results"
DEAD_LETTERS = "headrace.dlq"
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]")


def requests(model: str) -> str:
    """Where others put requests for a model."""
    return f"headrace.requests.{_part(model)}"


def api_requests(model: str) -> str:
    """Where the API puts them, so that a person does not wait behind a batch."""
    return f"headrace.api.{_part(model)}"


def group(model: str) -> str:
    """The consumer group of a model's workers."""
    return f"headrace.{_part(model)}"


def is_topic(name: str) -> bool:
    """Whether Kafka takes it for a topic's name."""
    return TOPIC.fullmatch(name) is not None and name not in (".", "..")


def _part(model: str) -> str:
    """A model's name as part of a topic's, which may hold less: what it may not hold is told apart by a hash."""
    plain = _FOREIGN.sub("_", model)
    return plain if plain == model else f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
