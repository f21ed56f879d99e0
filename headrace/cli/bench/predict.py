"""`headrace bench predict`: models that take tensors."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.bench.options import Repeats, Seed, app, report
from headrace.cli.options import Json, stderr


@app.command()
def predict(
    callers: Annotated[int, typer.Option(min=1, max=256, help="Number of callers, each with one row.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, max=512, help="Length of a row.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.5, help="Duration of each measurement.")] = 10.0,
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure MiniLM in ONNX Runtime behind the queue against the same batches without a server, in pairs.

    Measures the gain of dynamic batching, and the latency over gRPC, too.
    """
    from headrace.bench.predict.comparison import measure_prediction

    report(measure_prediction(callers, tokens, seconds, repeats, seed, stderr), as_json)
