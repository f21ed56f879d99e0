"""`headrace bench`: benchmarks of the server, the queue and the gateway. Each command imports its benchmark."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Annotated, Any, Literal

import typer

from headrace.cli.bench.options import Model, Plot, Repeats, Seed, app, names_of, report, report_tables
from headrace.cli.options import Json, print_json, stderr
from headrace.terminal import Terminal
from shared.errors import ConfigError, HeadraceError


@app.command()
def serve(
    url: Annotated[str, typer.Option(help="Address of the server.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model to request.")] = "smollm2",
    api: Annotated[Literal["chat", "completions"], typer.Option(help="OpenAI API to use.")] = "chat",
    requests: Annotated[
        int | None, typer.Option(min=1, help="Number of requests; default: 48, or as many as --duration allows.")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0.1, help="For how many seconds to start requests.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Number of clients of the closed loop.")] = 32,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests per second, as an open loop.")] = None,
    prompts: Annotated[str, typer.Option(help="Tokens of a prompt: 64, 32-128 or exp:MEAN:MAX.")] = "32-128",
    outputs: Annotated[str, typer.Option(help="Tokens of an answer, in the same notation.")] = "exp:48:160",
    ignore_eos: Annotated[
        bool, typer.Option(help="Request exactly that many tokens (not in OpenAI's API).")
    ] = True,
    warmup: Annotated[int, typer.Option(min=0, help="Number of requests before the measurement.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.1, help="Time limit of one request in seconds.")] = 600.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Load a server, and report the times to the first token, between tokens and in total, tokens/s and errors."""
    from headrace.bench.gateway.serve import measure
    from headrace.bench.harness.load import Load, Target
    from headrace.bench.harness.workload import Lengths, make_mix

    try:
        mix = functools.partial(make_mix, prompts=Lengths.parse(prompts), outputs=Lengths.parse(outputs))
    except ValueError as error:
        raise ConfigError(f"a length must be like 64, 32-128 or exp:48:160: {error}") from None
    items = (
        (item for block in itertools.count() for item in mix(seed + block))
        if requests is None and duration is not None
        else mix(seed, requests or 48)
    )
    target = Target(url, model, api, {"ignore_eos": True} if ignore_eos else {}, timeout)
    load = Load(concurrency, rate, duration, seed)
    # Other prompts than the measured ones, which must not be in the server's prefix cache.
    warmup_requests = mix(seed - 1, warmup)
    report = asyncio.run(measure(target, items, load, stderr, warmup=warmup_requests))
    if as_json:
        print_json(report.as_dict())
    else:
        Terminal().print(report.table(f"{model} at {url}"))
    if report.errors:
        raise HeadraceError(f"{sum(report.errors.values())} of {report.requests} requests failed")


@app.command()
def overhead(
    model: Model = "smollm2",
    runtime: Annotated[
        Literal["native", "upstream", "vllm"],
        typer.Option(
            help="What executes the model; upstream: llama.cpp's server. scripts/peers installs the others."
        ),
    ] = "native",
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the cost of the queue: the same work with and without API and queue, in pairs."""
    from headrace.bench.gateway.overhead import measure_overhead

    result = measure_overhead(model, runtime, repeats, seed, stderr)
    report(result, as_json)
    if result.disturbed:
        raise HeadraceError(f"{result.disturbed}; measure again on an idle machine")


@app.command()
def priorities(
    model: Model = "smollm2",
    quantization: Annotated[
        Literal["none", "int8", "int4"], typer.Option(help="Quantization of the weights.")
    ] = "none",
    repeats: Repeats = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure how much unlimited batch work delays the first token of interactive requests, in pairs."""
    from headrace.bench.gateway.priorities import measure_priorities

    # The prompts are sent twice; with a prefix cache, the second run would look better.
    settings: dict[str, object] = {"quantization": quantization, "prefix_caching": False}
    result = measure_priorities(model, repeats, seed, settings, stderr)
    report(result, as_json)


@app.command()
def delivery(as_json: Json = False) -> None:
    """Measure the cost of queue, log and streams alone, on the scripted engine without weights."""
    from headrace.bench.gateway.delivery import measure_delivery

    result = measure_delivery(stderr)
    report(result, as_json)


@app.command()
def memory(
    requests: Annotated[int, typer.Option(min=100, help="Number of requests of each size.")] = 1000,
    as_json: Json = False,
) -> None:
    """Measure the memory of waiting and finished requests in Redis, by size, and derive the formulas."""
    from headrace.bench.engine.memory import measure_memory

    result = measure_memory(requests)
    report(result, as_json)


@app.command()
def gateway(
    rate: Annotated[float, typer.Option(min=1, help="Requests per second.")] = 300.0,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of one run.")] = 8.0,
    against: Annotated[
        str,
        typer.Option(help="vllm: measure the CPU time of a streamed token against vLLM's server instead; or none."),
    ] = "none",
    model: Annotated[str, typer.Option(help="Model of both servers, with --against.")] = "smollm2",
    concurrency: Annotated[str, typer.Option(help="Numbers of concurrent streams, with --against.")] = "1,16,32",
    repeats: Repeats = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the cost of keys, limits, usage records and the request log, in pairs with an API without them."""
    from headrace.bench.gateway.added_latency import measure_gateway
    from headrace.bench.gateway.gateway_streams import measure_streams

    result: Any
    if against == "none":
        result = measure_gateway(rate, seconds, repeats, stderr)
    else:
        try:
            streams = [int(part) for part in concurrency.split(",")]
        except ValueError:
            raise ConfigError(f"--concurrency must be like 1,16,32, got {concurrency}") from None
        result = measure_streams(model, against, streams, repeats, seed, stderr)
    report(result, as_json)


@app.command()
def batch(
    parts: Annotated[
        str, typer.Option(help="Comma-separated: lines, kafka, rebalance, interactive.")
    ] = "lines,kafka,rebalance,interactive",
    lines: Annotated[int, typer.Option(min=1, help="Number of lines of a batch, for the part lines.")] = 2000,
    pace: Annotated[
        int, typer.Option(min=0, help="Milliseconds per token of the scripted engine, for the part lines.")
    ] = 10,
    requests: Annotated[
        int, typer.Option(min=1, help="Number of requests through Kafka; three times as many with rebalances.")
    ] = 10_000,
    bootstrap: Annotated[str, typer.Option(help="Kafka brokers; default: a mock in this process.")] = "",
    model: Annotated[
        str, typer.Option(help="Model of the part interactive; the other parts use the scripted engine.")
    ] = "smollm2",
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure batch work: lines of a batch, requests through Kafka, and the delay of interactive requests."""
    results: dict[str, Any] = {}
    for part in names_of("--parts", parts, ("lines", "kafka", "rebalance", "interactive")):
        if part == "lines":
            from headrace.bench.kafka.batches import measure_batches

            results[part] = measure_batches(lines, pace, repeats, stderr)
        elif part == "interactive":
            from headrace.bench.kafka.kafka_interference import measure_interference

            # The prompts are sent twice; with a prefix cache, the second run would look better.
            results[part] = measure_interference(model, bootstrap, repeats, seed, {"prefix_caching": False}, stderr)
        else:
            from headrace.bench.kafka.kafka_throughput import measure_kafka

            results[part] = measure_kafka(requests, bootstrap, repeats, stderr, churn=part == "rebalance")
    if as_json:
        print_json({part: result.as_dict() for part, result in results.items()})
    else:
        for result in results.values():
            Terminal().print(result.table())


@app.command()
def routing(
    policies: Annotated[
        str | None, typer.Option(help="Comma-separated policies to compare with pull; default: all.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of one run, after its warm-up.")] = 2.5,
    slowdown: Annotated[float, typer.Option(min=1, help="Slow the engines down, for a busy machine.")] = 1.0,
    plot: Plot = None,
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare the routing policies on three loads, on simulated engines behind the real queue."""
    from headrace.bench.routing.comparison import POLICIES, measure_routing
    from headrace.bench.routing.report import svg, tables

    wanted = POLICIES if policies is None else names_of("--policies", policies, POLICIES)
    chosen = [policy for policy in POLICIES if policy in wanted]
    result = measure_routing(chosen, seconds, slowdown, repeats, seed, stderr)
    if plot is not None:
        plot.write_text(svg(result))
    report_tables(result, tables, as_json)
