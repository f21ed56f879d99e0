"""Send requests of every kind that the OpenAPI document allows, and many that it does not, to a real API process.

    scripts/fuzz [--cases N] [--seed N]

Fails if an answer is a server error, or has a status, type or shape that the document does not describe. The
decoders of tensors, and the readers of model descriptions, get as many cases each, without a process around them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.fuzz import decoders
from tests.fuzz.descriptions import fuzz_descriptions
from tests.fuzz.run import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(
        "scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="minimum number of cases; default: 10000")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for name in decoders.DECODERS:
        print(f"{name}: {decoders.fuzz(name, cases=given.cases, seed=given.seed)}", flush=True)
    print(f"descriptions: {fuzz_descriptions(cases=given.cases, seed=given.seed)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-fuzz-") as folder:
        found = asyncio.run(fuzz(Path(folder), cases=given.cases, seed=given.seed))
    print(found.text)
    print(f"{found.cases} cases, {'no failure' if found.passed else 'FAILURES'}")
    return 0 if found.passed and found.cases >= given.cases else 1


if __name__ == "__main__":
    sys.exit(main())
