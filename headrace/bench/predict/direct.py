"""A worker's session of ONNX Runtime without the worker.

Executes batches of given sizes in a loop, and prints the rows per second as JSON. Run as a program, so that nothing
else is in its process.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.repository.spec import ModelSpec
from workers.predictors.interface import Arrays, Execution

VOCABULARY = range(1_000, 29_000)  # of MiniLM, without its special tokens


def rows(tokens: int, count: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Return random inputs of MiniLM: `count` rows of `tokens` token ids."""
    drawn = np.random.default_rng(seed).integers(VOCABULARY.start, VOCABULARY.stop, (count, tokens), dtype=np.int64)
    return {"input_ids": drawn, "attention_mask": np.ones_like(drawn)}


def measure(graph: Path, tokens: int, batches: dict[int, int], seconds: float, seed: int) -> dict[str, float]:
    """Execute batches in the proportions of `batches`, counts by size. Return rows/s."""
    execute = session(graph)
    sizes = [size for size, count in batches.items() for _ in range(count)]
    sizes = np.random.default_rng(seed).permutation(sizes).tolist()
    inputs = {size: rows(tokens, size, seed) for size in set(sizes)}
    for warm_up in inputs.values():
        execute(warm_up)
    done, begin = 0, time.perf_counter()
    for size in itertools.cycle(sizes):
        execute(inputs[size])
        done += size
        if (elapsed := time.perf_counter() - begin) > seconds:
            break
    return {"rows_per_second": done / elapsed}


def median_time(call: Callable[[], object], count: int) -> float:
    """Return the median of the seconds that a call takes."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def session(graph: Path) -> Callable[[Arrays], Arrays]:
    """Return what executes a graph: the session that a worker would have."""
    from workers.predictors.frameworks import onnxruntime

    described = ModelSpec(name=graph.stem, backend="onnxruntime", default_model_filename=graph.name)
    folder = graph.parent
    predictor = onnxruntime.load(onnxruntime.complete(described, folder), folder, threads=None)
    return lambda inputs: predictor.predict(Execution(inputs))


if __name__ == "__main__":
    path, length, counts, duration, number = sys.argv[1:]
    found = measure(
        Path(path),
        int(length),
        {int(size): count for size, count in json.loads(counts).items()},
        float(duration),
        int(number),
    )
    print(json.dumps(found))
