"""Requests for `headrace bench speculation`: structured answers, edits, summaries and free chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

PASSAGES = (
    "The mill stands where the stream leaves the valley. A channel of oak boards takes the water from a weir "
    "two hundred metres above the house and leads it along the slope to the wheel. In dry summers the miller "
    "closes the weir at night, so that the pond fills until the morning. The wheel drives two pairs of stones "
    "and, since 1921, a small generator, which lights the house and charges the batteries of the neighbouring "
    "farms.",
    "Our support team answers most tickets within four hours on working days. Urgent tickets go to the "
    "engineer on duty, who is called by telephone. If a ticket needs a change in the product, the team opens "
    "an issue, links it to the ticket and tells the customer in which release the change will appear. Tickets "
    "without an answer from the customer are closed after fourteen days, and can be opened again at any time.",
    "The city council has decided to close the bridge over the river for repairs from March to September. "
    "Cars will be led over the northern bridge, which adds about ten minutes to the way to the station. "
    "Cyclists and walkers may use a ferry, which runs every quarter of an hour between six in the morning and "
    "ten at night. The repairs cost nine million, of which the state pays two thirds.",
    "Before you clean the machine, switch it off and pull the plug. Empty the water tank and let the machine "
    "cool down for thirty minutes. Remove the filter, rinse it under warm water and let it dry. Wipe the "
    "housing with a soft cloth. Never put parts of the machine into a dishwasher. When all parts are dry, put "
    "the filter back, fill the tank with fresh water and run the machine once without coffee.",
)
QUESTIONS = (
    "What should I cook for six guests tonight?",
    "Explain to a child why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "How do I prepare for a job interview?",
    "What is the difference between a virus and a bacterium?",
    "Give me ideas for a rainy weekend.",
    "Write a polite letter to my landlord about a broken heater.",
    "How does a sailing boat move against the wind?",
)
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


def _passage(number: int) -> str:
    return PASSAGES[number % len(PASSAGES)]


TASKS = (
    Task("schema", lambda n: f"Make up invoice number {n + 1} of a hardware shop, as JSON.", 0.0, SCHEMA),
    Task("edit", lambda n: f"Correct the spelling of this text and repeat the whole text:\n\n{_passage(n)}", 0.0),
    Task("summary", lambda n: f"Summarize this text in its own words:\n\n{_passage(n)}", 0.0),
    Task("chat", lambda n: QUESTIONS[n % len(QUESTIONS)], 0.7),
)
