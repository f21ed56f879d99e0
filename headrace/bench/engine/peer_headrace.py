"""`python -m headrace.bench.engine.peer_headrace FOLDER SEED CONCURRENCY QUANTIZATION`: Headrace on the mix.

It prints its figures as JSON.
"""

from __future__ import annotations

import json
import sys

from headrace.bench.engine.engine_only import load_engine_from_settings, run_mix
from headrace.bench.harness.workload import make_mix, peer_mix


def main(model: str, seed: int, concurrency: int, quantization: str) -> None:
    engine = load_engine_from_settings(model, quantization=quantization)
    run_mix(engine, make_mix(seed + 2, 2), concurrency)
    mix = run_mix(engine, peer_mix(seed, concurrency), concurrency)
    print(json.dumps({"tokens": mix.tokens, "rate": mix.rate, "decode_rate": mix.decode_rate}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
