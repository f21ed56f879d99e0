"""Requests for `headrace bench speculation`: structured answers, edits, summaries of several kinds, free chat."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.bench.engine.drafting.texts import ARTICLES, MAILS, MINUTES, PASSAGES, QUESTIONS, RELEASES
from shared.protocol import Message, SamplingParams, Structured
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec, EngineRequest, Matcher

SCHEMA = {
    "type": "object",
    "properties": {
        "invoice_number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "customer_name": {"type": "string", "maxLength": 24},
        "delivery_address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 24},
                "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
                "country": {"enum": ["Germany", "France", "Italy"]},
            },
            "required": ["street", "postal_code", "country"],
            "additionalProperties": False,
        },
        "line_items": {
            "type": "array",
            "minItems": 2,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "description": {"type": "string", "maxLength": 24},
                    "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
                    "unit_price": {"type": "integer", "minimum": 1, "maximum": 999},
                },
                "required": ["description", "quantity", "unit_price"],
                "additionalProperties": False,
            },
        },
        "payment_status": {"enum": ["paid", "open", "overdue"]},
    },
    "required": ["invoice_number", "customer_name", "delivery_address", "line_items", "payment_status"],
    "additionalProperties": False,
}
"""Schema of an invoice, with nested objects and a list, as programs extract it from mails."""

ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Task:
    """A kind of requests: request `number` of it is `prompt(number)`."""

    name: str
    prompt: Callable[[int], str]
    temperature: float
    schema: dict[str, Any] | None = None

    def requests(self, engine: Engine, numbers: range, run: str) -> list[EngineRequest]:
        """Return the requests with these numbers; `run` only names them and their tenant."""
        matcher = None if self.schema is None else _matcher(engine, self.schema)
        return [self._request(engine, number, run, matcher) for number in numbers]

    def _request(
        self, engine: Engine, number: int, run: str, matcher: Callable[[], Matcher] | None
    ) -> EngineRequest:
        prompt = engine.tokenizer.encode_chat([Message("user", self.prompt(number))])
        params = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=self.temperature, seed=number)
        salt = run.encode()  # a tenant of its own: the answers of earlier runs are not known
        return EngineRequest(f"{run}-{number}", tuple(prompt), params, prefix_salt=salt, matcher=matcher)


def _matcher(engine: Engine, schema: dict[str, Any]) -> Callable[[], Matcher]:
    assert engine.constraints is not None  # the command needs llguidance
    spec = ConstraintSpec(Structured(json_schema=json.dumps(schema)))
    return engine.constraints.start(spec).result().matcher


def _about(instruction: str, texts: Sequence[str]) -> Callable[[int], str]:
    """Return the prompts that ask for something about each of some texts in turn."""
    return lambda number: f"{instruction}\n\n{texts[number % len(texts)]}"


TASKS = (
    Task("schema", lambda n: f"Make up invoice number {n + 1} of a hardware shop, as JSON.", 0.0, SCHEMA),
    Task("edit", _about("Correct the spelling of this text and repeat the whole text:", PASSAGES), 0.0),
    Task("summary", _about("Summarize this text in its own words:", PASSAGES), 0.0),
    Task("article", _about("List the key facts of this article, with names and numbers:", ARTICLES), 0.0),
    Task("minutes", _about("Summarize this meeting: the decisions, and who does what by when.", MINUTES), 0.0),
    Task("mail", _about("Summarize this e-mail: who writes, what happened, what is asked for?", MAILS), 0.0),
    Task("release", _about("Summarize these release notes for our customers:", RELEASES), 0.0),
    Task("chat", lambda n: QUESTIONS[n % len(QUESTIONS)], 0.7),
)
