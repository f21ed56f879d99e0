"""`headrace bench structured`: whether answers fit their schemas, and what holding them to one costs a token.

It drives the engine in this process.
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

BATCH = 16
MOST_TOKENS = 400  # of an answer; those of these schemas are shorter
TOKENS = 96  # of each answer whose speed is measured
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
class Found:
    """`valid`: of `schemas` answers; `wrong` says why the others are not: cut off, no JSON, or not fitting.

    `speeds`: tokens/s of each pair of runs, free and held; `foreign`: the share of the cores that others had then.
    """

    schemas: int
    valid: int = 0
    tokens: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    speeds: list[tuple[float, float]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    @property
    def slower(self) -> float | None:
        """How much longer a token takes, by the median of the pairs."""
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
            table.add_row("tokens/s, free and held; others", f"{free:.1f}, {held:.1f}; {foreign:.1%}")
        if self.slower is not None:
            table.add_row("longer a token, median of pairs", f"{self.slower:.1%}")
        return table


def measure_structured(model: str, count: int, repeats: int, seed: int, console: Console, **settings: Any) -> Found:
    """Answers to `count` schemas, checked, then `repeats` pairs of runs of 16 answers at once, free and held."""
    llm = LLM(model=model, max_num_seqs=BATCH, **settings)
    schemas = make_schemas(count, seed)
    found = Found(count)
    if count:
        console.print(f"{count} schemas")
        _check(llm, schemas, seed, found)
    for number in range(repeats):
        console.print(f"pair {number + 1} of {repeats}")
        if number == 0:
            _speed(llm, held=True)  # compiles
        with foreign_load() as during:
            speeds = {held: _speed(llm, held=held) for held in ((True, False) if number % 2 else (False, True))}
        found.speeds.append((speeds[False], speeds[True]))
        found.foreign.append(during.share)
    return found


def _check(llm: LLM, schemas: Sequence[Schema], seed: int, found: Found) -> None:
    conversations = [
        [{"role": "user", "content": f"Make up example number {number + 1}, as JSON."}]
        for number in range(len(schemas))
    ]
    params = [
        SamplingParams(
            temperature=1.0,
            seed=seed + number,
            max_tokens=MOST_TOKENS,
            structured_outputs=StructuredOutputsParams(json=schema),
        )
        for number, schema in enumerate(schemas)
    ]
    for schema, answer in zip(schemas, llm.chat(conversations, params, use_tqdm=False), strict=True):
        [output] = answer.outputs
        found.tokens += len(output.token_ids)
        if (why := _wrong(schema, output.text, output.finish_reason)) is None:
            found.valid += 1
        else:
            found.wrong[why] += 1


def _wrong(schema: Schema, text: str, finish_reason: str | None) -> str | None:
    """What is wrong with an answer, if anything is."""
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
        return "no JSON"
    except jsonschema.ValidationError as error:
        return f"does not fit: {error.validator}"
    return None


def _speed(llm: LLM, *, held: bool) -> float:
    """Tokens/s of a full batch."""
    schemas = [{"type": "array", "items": ROW, "minItems": 50 + number} for number in range(BATCH)]
    params = [
        SamplingParams(
            temperature=1.0,
            seed=number,
            max_tokens=TOKENS,
            ignore_eos=not held,
            structured_outputs=StructuredOutputsParams(json=schema) if held else None,
        )
        for number, schema in enumerate(schemas)
    ]
    begin = time.perf_counter()
    answers = llm.generate(
        [f"Mill number {number} of the river:" for number in range(BATCH)], params, use_tqdm=False
    )
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    return tokens / (time.perf_counter() - begin)
