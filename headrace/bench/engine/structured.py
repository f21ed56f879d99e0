"""`headrace bench structured`: whether answers fit their schemas, and what structured outputs cost per token.

It runs the engine in this process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from headrace.bench.engine.schemas import Schema, make_schemas
from headrace.bench.harness.cpu_contention import foreign_load
from headrace.llm import LLM, SamplingParams, StructuredOutputsParams

BATCH_SIZE = 16
MAX_ANSWER_TOKENS = 400  # answers to these schemas are shorter
SPEED_TOKENS = 96  # of each answer in a speed measurement
ROW = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "day": {"type": "string", "format": "date"},
        "kind": {"enum": ["river", "mill", "wheel"]},
        "size": {"type": "integer", "minimum": 1, "maximum": 999},
    },
    "required": ["name", "day", "kind", "size"],
}


@dataclass
class StructuredResult:
    """Results.

    Attributes:
        valid: answers that fit their schema, of `schemas`.
        wrong: defects of the other answers, with their counts: cut off, not JSON, or not fitting.
        speeds: tokens/s of each pair of runs, unconstrained and constrained.
        foreign: share of the cores that other processes used, of each pair.
    """

    schemas: int
    valid: int = 0
    tokens: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    speeds: list[tuple[float, float]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    @property
    def slower(self) -> float | None:
        """Additional time per token with a schema, as a share: the median over the pairs."""
        return statistics.median(free / held for free, held in self.speeds) - 1 if self.speeds else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "schemas": self.schemas,
            "valid": self.valid,
            "tokens": self.tokens,
            "wrong": dict(self.wrong),
            "pairs": [
                {"free": free, "held": held, "foreign": foreign}
                for (free, held), foreign in zip(self.speeds, self.foreign, strict=True)
            ],
            "slower": self.slower,
        }

    def table(self) -> Table:
        table = Table("structured outputs", "")
        table.add_row("answers that fit their schema", f"{self.valid} of {self.schemas}")
        table.add_row("tokens of an answer", f"{self.tokens / max(self.schemas, 1):.0f}")
        for why, count in self.wrong.items():
            table.add_row(why, str(count))
        for (free, held), foreign in zip(self.speeds, self.foreign, strict=True):
            figures = f"{free:.1f}, {held:.1f}; {foreign:.1%}"
            table.add_row("tokens/s without and with a schema; foreign load", figures)
        if self.slower is not None:
            table.add_row("additional time per token, median of pairs", f"{self.slower:.1%}")
        return table


def measure_structured(
    model: str, count: int, repeats: int, seed: int, console: Console, **settings: Any
) -> StructuredResult:
    """Check answers to `count` schemas, then time `repeats` pairs of runs of 16 answers, free and constrained."""
    llm = LLM(model=model, max_num_seqs=BATCH_SIZE, **settings)
    schemas = make_schemas(count, seed)
    found = StructuredResult(count)
    if count:
        console.print(f"{count} schemas")
        _check_answers(llm, schemas, seed, found)
    for number in range(repeats):
        console.print(f"pair {number + 1} of {repeats}")
        if number == 0:
            _tokens_per_second(llm, constrained=True)  # compiles the grammars
        with foreign_load() as during:
            speeds = {
                held: _tokens_per_second(llm, constrained=held)
                for held in ((True, False) if number % 2 else (False, True))
            }
        found.speeds.append((speeds[False], speeds[True]))
        found.foreign.append(during.share)
    return found


def _check_answers(llm: LLM, schemas: Sequence[Schema], seed: int, found: StructuredResult) -> None:
    conversations = [
        [{"role": "user", "content": f"Make up example number {number + 1}, as JSON."}]
        for number in range(len(schemas))
    ]
    params = [
        SamplingParams(
            temperature=1.0,
            seed=seed + number,
            max_tokens=MAX_ANSWER_TOKENS,
            structured_outputs=StructuredOutputsParams(json=schema),
        )
        for number, schema in enumerate(schemas)
    ]
    for schema, answer in zip(schemas, llm.chat(conversations, params, use_tqdm=False), strict=True):
        [output] = answer.outputs
        found.tokens += len(output.token_ids)
        if (why := _defect(schema, output.text, output.finish_reason)) is None:
            found.valid += 1
        else:
            found.wrong[why] += 1


def _defect(schema: Schema, text: str, finish_reason: str | None) -> str | None:
    """Return the defect of an answer; None if it fits its schema."""
    if finish_reason != "stop":
        return f"ended by {finish_reason}"
    try:
        jsonschema.validate(
            json.loads(text),
            schema,
            cls=jsonschema.Draft202012Validator,
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
    except json.JSONDecodeError:
        return "not JSON"
    except jsonschema.ValidationError as error:
        return f"does not fit: {error.validator}"
    return None


def _tokens_per_second(llm: LLM, *, constrained: bool) -> float:
    """Return the tokens/s of a full batch, with schemas if `constrained`."""
    schemas = [{"type": "array", "items": ROW, "minItems": 50 + number} for number in range(BATCH_SIZE)]
    params = [
        SamplingParams(
            temperature=1.0,
            seed=number,
            max_tokens=SPEED_TOKENS,
            ignore_eos=not constrained,
            structured_outputs=StructuredOutputsParams(json=schema) if constrained else None,
        )
        for number, schema in enumerate(schemas)
    ]
    begin = time.perf_counter()
    answers = llm.generate(
        [f"Mill number {number} of the river:" for number in range(BATCH_SIZE)], params, use_tqdm=False
    )
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    return tokens / (time.perf_counter() - begin)
