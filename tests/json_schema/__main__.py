"""Command line of `scripts/json-schema-suite`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared.models.model_store import ModelRepository
from shared.settings import load
from tests.json_schema.measure import Grammars, decide_cases, draw_schemas, measure_compilation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="checkout of json-schema-org/JSON-Schema-Test-Suite")
    parser.add_argument("bench", type=Path, help="checkout of guidance-ai/jsonschemabench")
    parser.add_argument("--seed", type=int, default=1, help="decides which schemas of the bench are drawn")
    options = parser.parse_args()
    grammars = Grammars(ModelRepository(load().settings).folder())
    for strict in (True, False):
        decided = decide_cases(grammars, options.suite, strict=strict)
        compiled = measure_compilation(grammars, draw_schemas(options.bench, options.seed), strict=strict)
        name = "strict" if strict else "lenient"
        sys.stdout.write(f"{name}\n  test suite: {decided}\n  real schemas: {compiled}\n")


main()
