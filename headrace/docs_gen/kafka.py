"""The documents of Kafka's records, made from their types: `scripts/kafka-doc`.

JSON Schema 2020-12 of a request and of a result, and an AsyncAPI 3 document of the topics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from shared.kafka import topics
from shared.kafka.message import REQUEST_TYPE, RESULT_TYPE, KafkaRequest
from shared.schemas.native.jobs import Job

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path("docs/kafka")
TEXT: dict[str, Any] = {"type": "string"}


def request_schema() -> dict[str, Any]:
    return {"$schema": DIALECT, "title": "Request", **KafkaRequest.model_json_schema(by_alias=True)}


def result_schema() -> dict[str, Any]:
    (schema,), components = msgspec.json.schema_components([Job], ref_template="#/$defs/{name}")
    return {"$schema": DIALECT, "title": "Result", **schema, "$defs": components}


def asyncapi() -> dict[str, Any]:
    """What is sent and received, from the view of one who uses Headrace through its topics."""
    channels = {
        "requests": (topics.requests("model").replace("model", "{model}"), "Requests for one model", "request"),
        "results": (topics.RESULTS, "Results, unless a request's reply-topic names another topic", "result"),
        "deadLetters": (topics.DEAD_LETTERS, "Records that were no requests, with the reason", "deadLetter"),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Headrace through Kafka",
            "version": "1",
            "description": "Requests for language models, and their results, exactly once for a reader "
            "of what is committed. Headers: CloudEvents 1.0 in binary mode; plain JSON without any is accepted.",
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
                    "payload": {"description": "the record's own bytes, whatever they are"},
                },
            }
        },
    }


def _channel(name: str, address: str, description: str, message: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "address": address,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }
    if name == "requests":
        found["parameters"] = {"model": {"description": "a served model's name; other characters by a hash"}}
    return found


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
        "traceparent": {**TEXT, "description": "W3C Trace Context; the request's, also in its result"},
        "tracestate": TEXT,
    }
    return {"type": "object", "properties": {**event, **more}}


_REQUEST = {
    "ce_id": {**TEXT, "minLength": 1, "description": "of a tenant's requests with one id, one is run"},
    "priority": {"enum": ["interactive", "standard", "batch"], "description": "counts over the field of that name"},
    "reply-topic": {**TEXT, "pattern": f"^{topics.TOPIC.pattern}$", "description": "where the result goes"},
}
_RESULT = {
    "ce_id": {**TEXT, "description": "the request's id and `.result`"},
    "ce_subject": {**TEXT, "description": "the request's ce_id, if it had one"},
    "headrace-source": {**TEXT, "description": "the request's topic/partition/offset"},
}
_DEAD = {
    "headrace-error-code": TEXT,
    "headrace-error-message": TEXT,
    "headrace-topic": TEXT,
    "headrace-partition": {**TEXT, "pattern": "^[0-9]+$"},
    "headrace-offset": {**TEXT, "pattern": "^[0-9]+$"},
    "headrace-truncated": {**TEXT, "description": "bytes that the value had, where no topic takes it"},
}


def documents() -> dict[str, str]:
    """By file name in FOLDER."""
    found = {
        "request.schema.json": request_schema(),
        "result.schema.json": result_schema(),
        "asyncapi.json": asyncapi(),
    }
    return {name: json.dumps(document, indent=2) + "\n" for name, document in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
