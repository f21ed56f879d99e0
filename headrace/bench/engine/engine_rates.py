"""`python -m headrace.bench.engine.engine_rates MODEL CONCURRENCY REQUESTS SEED`: the bare engine at some
concurrency, as JSON.

On the device and in the dtype that the settings say, with a seat for each request at a time. As many run before it
is measured.
"""

from __future__ import annotations

import json
import statistics
import sys

from headrace.bench.engine.engine_only import load_engine, run_mix
from headrace.bench.harness.workload import make_mix


def main(model: str, concurrency: int, requests: int, seed: int) -> None:
    engine = load_engine(model, max_num_seqs=concurrency)
    run_mix(engine, make_mix(seed + 1, concurrency), concurrency)
    tokens, rate, waits = run_mix(engine, make_mix(seed, requests), concurrency)
    print(json.dumps({"tokens": tokens, "rate": rate, "first_token": statistics.median(waits)}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
