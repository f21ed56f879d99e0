"""Decisions of grammars about the JSON Schema Test Suite 2020-12, and the compilation of real schemas.

Each case of the suite is a schema and a value that fits it or does not. The value is fed to the grammar as the
tokens of its JSON text; a schema that is refused leaves its cases undecided.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import InvalidRequest
from shared.protocol import Structured
from shared.validation.request_limits import Limits, check_structured
from workers.engine.grammar.compiler import GrammarCompiler
from workers.engine.interface import Constraint, ConstraintSpec
from workers.engine.models.loader import read_eos_token_ids, read_model_config
from workers.engine.text.tokenizer import Tokenizer

FOLDERS = (
    *("Github_trivial", "Github_easy", "Github_medium", "Github_hard", "Github_ultra"),
    *("Glaiveai2K", "JsonSchemaStore"),
)
DRAWN = 30  # schemas of each folder


class Grammars:
    """Compiler of schemas for one model, as its worker has it."""

    def __init__(self, folder: Path) -> None:
        config = read_model_config(folder)
        self._tokenizer = Tokenizer(folder)
        self._eos = read_eos_token_ids(folder, config.eos_token_ids)
        self._vocab_size = config.vocab_size
        self._compiler = GrammarCompiler(self._tokenizer, config.vocab_size, self._eos)

    def compile(self, schema: Any, *, strict: bool) -> Constraint | None:
        """Return the compiled schema; None if the front end or the worker refuses it."""
        asked = Structured(json_schema=json.dumps(schema), strict=strict)
        try:
            check_structured(asked, Limits())
            return self._compiler.start(ConstraintSpec(asked)).result(120)
        except InvalidRequest:
            return None

    def fits(self, compiled: Constraint, value: Any) -> bool:
        matcher = compiled.matcher()
        tokens = self._tokenizer.encode(json.dumps(value, ensure_ascii=False), special=False)
        return all(map(matcher.accept, tokens)) and (matcher.finished or matcher.accept(min(self._eos)))

    def first_mask(self, compiled: Constraint) -> None:
        compiled.matcher().fill(torch.zeros((1, -(-self._vocab_size // 32)), dtype=torch.int32), 0)


def decide_cases(grammars: Grammars, suite: Path, *, strict: bool) -> dict[str, int]:
    """Return how many cases of the suite are decided rightly, decided wrongly either way, and undecided."""
    counts = Counter(dict.fromkeys(("right", "accepts invalid", "rejects valid", "undecided"), 0))
    for group in _groups(suite):
        compiled = grammars.compile(group["schema"], strict=strict)
        for case in group["tests"]:
            counts[_decision(grammars, compiled, case)] += 1
    return dict(counts)


def _groups(suite: Path) -> Iterator[dict[str, Any]]:
    files = sorted((suite / "tests" / "draft2020-12").glob("*.json"))
    if not files:
        raise SystemExit(f"{suite} has no tests/draft2020-12")
    for file in files:
        yield from json.loads(file.read_text())


def _decision(grammars: Grammars, compiled: Constraint | None, case: dict[str, Any]) -> str:
    if compiled is None:
        return "undecided"
    accepted = grammars.fits(compiled, case["data"])
    if accepted == case["valid"]:
        return "right"
    return "accepts invalid" if accepted else "rejects valid"


def draw_schemas(bench: Path, seed: int) -> list[Any]:
    """Return schemas drawn at random from each folder, the same for the same seed."""
    rng = random.Random(seed)
    drawn = [file for name in FOLDERS for file in rng.sample(sorted((bench / "data" / name).glob("*.json")), DRAWN)]
    return [json.loads(file.read_text()) for file in drawn]


@dataclass(frozen=True)
class Compilation:
    """Times to compile and get the first mask, in seconds, of the schemas that were accepted."""

    accepted: int
    drawn: int
    times: list[float]

    def __str__(self) -> str:
        median, *_, p95 = (statistics.quantiles(self.times, n=20)[i] for i in (9, 18))
        return (
            f"{self.accepted} of {self.drawn} accepted; compilation and first mask: median {median * 1000:.1f} ms, "
            f"p95 {p95 * 1000:.0f} ms, at most {max(self.times) * 1000:.0f} ms"
        )


def measure_compilation(grammars: Grammars, schemas: list[Any], *, strict: bool) -> Compilation:
    times = []
    for schema in schemas:
        begin = time.perf_counter()
        if (compiled := grammars.compile(schema, strict=strict)) is not None:
            grammars.first_mask(compiled)
            times.append(time.perf_counter() - begin)
    return Compilation(len(times), len(schemas), times)
