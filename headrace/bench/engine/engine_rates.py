"""`python -m headrace.bench.engine.engine_rates MODEL CONCURRENCY REQUESTS SEED`: the engine alone, as JSON.

It uses the device and the dtype of the settings, with CONCURRENCY seats, and runs as many requests to warm up.
"""

from __future__ import annotations

import json
import statistics
import sys

from headrace.bench.engine.engine_only import load_engine_from_settings, run_mix
from headrace.bench.harness.workload import make_mix


def main(model: str, concurrency: int, requests: int, seed: int) -> None:
    engine = load_engine_from_settings(model, max_num_seqs=concurrency)
    run_mix(engine, make_mix(seed + 1, concurrency), concurrency)
    mix = run_mix(engine, make_mix(seed, requests), concurrency)
    print(json.dumps({"tokens": mix.tokens, "rate": mix.rate, "first_token": statistics.median(mix.waits)}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
