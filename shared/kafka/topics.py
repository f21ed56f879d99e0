"""Names of topics and consumer groups.

| topic | records | written by |
| --- | --- | --- |
| headrace.requests.<model> | requests of clients, their class in a header | clients |
| headrace.api.<model> | requests received by HTTP, with `queue` kafka | API |
| headrace.results | results, unless the request's `reply-topic` names another topic | worker |
| headrace.dlq | invalid records, unchanged, with the reason | worker |
"""

from __future__ import annotations

import hashlib
import re

RESULTS = "headrace.results"
DEAD_LETTERS = "headrace.dlq"
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]")


def requests(model: str) -> str:
    """Return the topic of clients' requests for a model."""
    return f"headrace.requests.{_part(model)}"


def api_requests(model: str) -> str:
    """Return the topic of the API's requests for a model, in which a person does not wait behind a batch."""
    return f"headrace.api.{_part(model)}"


def group(model: str) -> str:
    """Return the consumer group of a model's workers."""
    return f"headrace.{_part(model)}"


def is_topic(name: str) -> bool:
    """Return whether Kafka accepts the name for a topic."""
    return TOPIC.fullmatch(name) is not None and name not in (".", "..")


def _part(model: str) -> str:
    """Return a model's name as part of a topic's: other characters are replaced, and a hash is added."""
    plain = _FOREIGN.sub("_", model)
    return plain if plain == model else f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
