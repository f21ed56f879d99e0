"""Documents of Kafka's records, generated from their types: `scripts/kafka-doc`.

JSON Schemas (2020-12) of a request and of a result, and an AsyncAPI 3 document of the topics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from shared.kafka import topics
from shared.kafka.message import REQUEST_TYPE, RESULT_TYPE, KafkaRequest
from shared.schemas.native.jobs import Job
from shared.validation.schema_check import NOT_HELD

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path("docs/kafka")
TEXT: dict[str, Any] = {"type": "string"}


def request_schema() -> dict[str, Any]:
    return {"$schema": DIALECT, "title": "Request", **KafkaRequest.model_json_schema(by_alias=True)}


def result_schema() -> dict[str, Any]:
    (schema,), components = msgspec.json.schema_components([Job], ref_template="#/$defs/{name}")
    return {"$schema": DIALECT, "title": "Result", **schema, "$defs": components}


def asyncapi() -> dict[str, Any]:
    """Return the topics and messages, from the view of a client that uses Headrace through Kafka."""
    channels = {
        "requests": (topics.requests("model").replace("model", "{model}"), "Requests for one model", "request"),
        "results": (topics.RESULTS, "Results, unless a request's reply-topic names another topic", "result"),
        "deadLetters": (topics.DEAD_LETTERS, "Records that are not valid requests, with the reason", "deadLetter"),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Headrace through Kafka",
            "version": "1",
            "description": "Requests for language models and their results, exactly once for a reader of "
            "committed records. Headers: CloudEvents 1.0 in binary mode; plain JSON without headers is accepted.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name, *rest) for name, rest in channels.items()},
        "operations": {
            "ask": _operation("send", "requests"),
            "hear": _operation("receive", "results"),
            "hearOfDeadLetters": _operation("receive", "deadLetters"),
        },
        "components": {
            "messages": {
                "request": _message(_headers(REQUEST_TYPE, _REQUEST), "./request.schema.json"),
                "result": _message(_headers(RESULT_TYPE, _RESULT), "./result.schema.json"),
                "deadLetter": {
                    "headers": {"type": "object", "properties": _DEAD, "additionalProperties": True},
                    "payload": {"description": "the record's own bytes, unchanged"},
                },
            }
        },
    }


def _channel(name: str, address: str, description: str, message: str) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }
    if name == "requests":
        channel["parameters"] = {
            "model": {"description": "a served model's name; a hash replaces characters that topics do not allow"}
        }
    return channel


def _operation(action: str, channel: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}}


def _message(headers: dict[str, Any], payload: str) -> dict[str, Any]:
    return {"contentType": "application/json", "headers": headers, "payload": {"$ref": payload}}


def _headers(kind: str, more: dict[str, Any]) -> dict[str, Any]:
    event = {
        "ce_specversion": {"const": "1.0"},
        "ce_id": TEXT,
        "ce_source": TEXT,
        "ce_type": {"const": kind},
        "content-type": {"const": "application/json"},
        "traceparent": {**TEXT, "description": "W3C Trace Context; a result has that of its request"},
        "tracestate": TEXT,
    }
    return {"type": "object", "properties": {**event, **more}}


_REQUEST = {
    "ce_id": {
        **TEXT,
        "minLength": 1,
        "description": "idempotency key: of a tenant's requests with the same id, one runs",
    },
    "priority": {
        "enum": ["interactive", "standard", "batch"],
        "description": "takes precedence over the field of that name",
    },
    "reply-topic": {**TEXT, "pattern": f"^{topics.TOPIC.pattern}$", "description": "topic for the result"},
}
_RESULT = {
    "ce_id": {**TEXT, "description": "the job id, followed by `.result`"},
    "ce_subject": {**TEXT, "description": "the request's ce_id, if it had one"},
    "headrace-source": {**TEXT, "description": "the request's topic/partition/offset"},
    "headrace-ignored-fields": {**TEXT, "description": "unknown fields of the request, separated by commas"},
    NOT_HELD: {**TEXT, "description": "keywords of a JSON schema that the answer is not held to"},
}
_DEAD = {
    "headrace-error-code": TEXT,
    "headrace-error-message": TEXT,
    "headrace-topic": TEXT,
    "headrace-partition": {**TEXT, "pattern": "^[0-9]+$"},
    "headrace-offset": {**TEXT, "pattern": "^[0-9]+$"},
    "headrace-truncated": {**TEXT, "description": "size of the value in bytes, if it was too large to be kept"},
}


def documents() -> dict[str, str]:
    """Return the documents by their file name in FOLDER."""
    contents = {
        "request.schema.json": request_schema(),
        "result.schema.json": result_schema(),
        "asyncapi.json": asyncapi(),
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
