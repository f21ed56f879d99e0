"""`headrace bench …`: each command imports its benchmark when it runs."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from shared.errors import ConfigError, HeadraceError

app = typer.Typer(no_args_is_help=True, help="Measure: the engine, the server, what the queue costs and takes.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Of lengths, prompts and arrivals.")]
Repeats = Annotated[int, typer.Option(min=1, help="Pairs of runs; medians are reported.")]
Model = Annotated[str, typer.Option(help="Folder, Hugging Face id, or smollm2.")]


@app.command()
def serve(
    url: Annotated[str, typer.Option(help="Address of the server.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model to ask for.")] = "smollm2",
    api: Annotated[Literal["chat", "completions"], typer.Option(help="Which of OpenAI's APIs.")] = "chat",
    requests: Annotated[
        int | None, typer.Option(min=1, help="How many requests; default: 48, or what --duration allows.")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds in which requests are begun.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Clients of the closed loop.")] = 32,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests a second: an open loop.")] = None,
    prompts: Annotated[str, typer.Option(help="Prompt tokens: 64, 32-128 or exp:MEAN:MOST.")] = "32-128",
    outputs: Annotated[str, typer.Option(help="Output tokens, likewise.")] = "exp:48:160",
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for exactly that many tokens (not in OpenAI's API).")
    ] = True,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the measurement.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one request may take.")] = 600.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Load a server: time to first token, between tokens, end to end; tokens/s; errors."""
    from headrace.bench.gateway.serve import measure
    from headrace.bench.harness.load import Load, Target
    from headrace.bench.harness.workload import Lengths, make_mix

    try:
        mix = functools.partial(make_mix, prompts=Lengths.parse(prompts), outputs=Lengths.parse(outputs))
    except ValueError as error:
        raise ConfigError(f"a length is 64, 32-128 or exp:48:160: {error}") from None
    items = (
        (item for block in itertools.count() for item in mix(seed + block))
        if requests is None and duration is not None
        else mix(seed, requests or 48)
    )
    target = Target(url, model, api, {"ignore_eos": True} if ignore_eos else {}, timeout)
    load = Load(concurrency, rate, duration, seed)
    # prompts of their own: a server that keeps prompts must not know the measured ones
    before = mix(seed - 1, warmup)
    report = asyncio.run(measure(target, items, load, Console(stderr=True), warmup=before))
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        Console().print(report.table(f"{model} at {url}"))
    if report.errors:
        raise HeadraceError(f"{sum(report.errors.values())} of {report.requests} requests failed")


@app.command()
def overhead(model: Model = "smollm2", repeats: Repeats = 3, seed: Seed = 0, as_json: Json = False) -> None:
    """What the queue costs: the same work on the bare engine and through queue, API and worker, in pairs."""
    from headrace.bench.gateway.overhead import measure_overhead

    result = measure_overhead(model, repeats, seed, Console(stderr=True))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())
    if result.disturbed:
        raise HeadraceError(f"{result.disturbed}: measure again on a quiet machine")


@app.command()
def priorities(
    model: Model = "smollm2",
    quantization: Annotated[Literal["none", "int8"], typer.Option(help="Of the weights.")] = "none",
    repeats: Repeats = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What batch work that takes all it can get costs interactive requests: time to the first token, in pairs."""
    from headrace.bench.gateway.priorities import measure_priorities

    # the same prompts come twice: a cached beginning would make the second time look better
    settings: dict[str, object] = {"quantization": quantization, "prefix_caching": False}
    result = measure_priorities(model, repeats, seed, settings, Console(stderr=True))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def delivery(as_json: Json = False) -> None:
    """What queue, log and streams cost by themselves, on the engine without weights: no model is run."""
    from headrace.bench.gateway.delivery import measure_delivery

    result = measure_delivery(Console(stderr=True))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def engine(
    model: Model = "smollm2",
    against: Annotated[str, typer.Option(help="Of hf, vllm, llamacpp, those installed; or none.")] = "hf",
    quantization: Annotated[Literal["none", "int8"], typer.Option(help="Of our side.")] = "none",
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time; 1: one alone.")] = 32,
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Instead: where a step's time goes, and its floor.")
    ] = False,
) -> None:
    """The bare engine's output tokens/s, in pairs with other engines on the same work."""
    from headrace.bench.engine.engine_throughput import measure_engine
    from headrace.bench.engine.profile import Profile
    from headrace.bench.harness.subprocess_run import run_in_subprocess

    if profile:
        result: Any = Profile(
            **run_in_subprocess("headrace.bench.engine.profile", model, seed, concurrency, quantization)
        )
    else:
        result = measure_engine(
            model,
            against,
            repeats,
            seed,
            Console(stderr=True),
            quantization=quantization,
            concurrency=concurrency,
        )
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def perplexity(
    model: Model = "smollm2",
    tokens: Annotated[int, typer.Option(min=2, help="Of the text, from its beginning.")] = 20_481,
    as_json: Json = False,
) -> None:
    """What int8 costs: perplexity on licence texts and greedy agreement, against float32."""
    from headrace.bench.engine.perplexity import measure_perplexity

    result = measure_perplexity(model, tokens, Console(stderr=True))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def memory(
    requests: Annotated[int, typer.Option(min=100, help="How many of each size.")] = 1000, as_json: Json = False
) -> None:
    """What a waiting and a finished request take in Redis, by size, and the formulas for it."""
    from headrace.bench.engine.memory import measure_memory

    result = measure_memory(requests)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def batching(
    model: Model = "smollm2",
    parts: Annotated[
        str, typer.Option(help="Of policies, stall, prefix, waiting, steps.")
    ] = "policies,stall,prefix,waiting,steps",
    budget: Annotated[int, typer.Option(min=17, help="Tokens a step while the long prompt arrives.")] = 32,
    plot: Annotated[Path | None, typer.Option(help="Write the policies' comparison there, as SVG.")] = None,
    repeats: Repeats = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What continuous batching, chunked prompts and the prefix cache gain."""
    from headrace.bench.engine.batching import PARTS, measure_batching
    from headrace.bench.engine.batching_report import svg, tables
    from shared.runtime.logging import configure_logging
    from shared.settings import load

    wanted = parts.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        raise ConfigError(f"--parts are of {', '.join(PARTS)}, not {unknown[0]}")
    if plot is not None and "policies" not in wanted:
        raise ConfigError("--plot draws the part policies, which is not among --parts")
    configure_logging(load().settings, process="bench")  # the engine's go to stderr
    result = measure_batching(model, wanted, budget, repeats, seed, Console(stderr=True))
    if plot is not None:
        plot.write_text(svg(result))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        for table in tables(result):
            Console().print(table)


@app.command()
def gateway(
    rate: Annotated[float, typer.Option(min=1, help="Requests a second.")] = 300.0,
    seconds: Annotated[float, typer.Option(min=1, help="Of one run.")] = 8.0,
    against: Annotated[
        str, typer.Option(help="vllm: instead, a streamed token's CPU beside its server's; or none.")
    ] = "none",
    model: Annotated[str, typer.Option(help="Of both servers, with --against.")] = "smollm2",
    concurrency: Annotated[str, typer.Option(help="Streams at a time, with --against.")] = "1,16,32",
    repeats: Repeats = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What keys, limits, usage records and the request log cost: the same API with and without them, in pairs."""
    from headrace.bench.gateway.added_latency import measure_gateway
    from headrace.bench.gateway.gateway_streams import measure_streams

    result: Any
    if against == "none":
        result = measure_gateway(rate, seconds, repeats, Console(stderr=True))
    else:
        try:
            streams = [int(part) for part in concurrency.split(",")]
        except ValueError:
            raise ConfigError(f"--concurrency is like 1,16,32, not {concurrency}") from None
        result = measure_streams(model, against, streams, repeats, seed, Console(stderr=True))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def embeddings(
    model: Annotated[str, typer.Option(help="Folder, Hugging Face id, or a name.")] = "all-minilm-l6-v2",
    inputs: Annotated[str, typer.Option(help="Tokens of an input: 64, 32-128 or exp:MEAN:MOST.")] = "32-128",
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Inputs and tokens a second of /v1/embeddings, in pairs with transformers' plain forward pass."""
    from headrace.bench.engine.embeddings import measure_embeddings

    result = measure_embeddings(model, inputs, repeats, seed, Console(stderr=True))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(result.table())


@app.command()
def batch(
    parts: Annotated[
        str, typer.Option(help="Of lines, kafka, rebalance, interactive.")
    ] = "lines,kafka,rebalance,interactive",
    lines: Annotated[int, typer.Option(min=1, help="Of one batch of the part lines.")] = 2000,
    pace: Annotated[
        int, typer.Option(min=0, help="Milliseconds that the engine takes for a token of a line.")
    ] = 10,
    requests: Annotated[
        int, typer.Option(min=1, help="Through Kafka; three times as many with rebalances.")
    ] = 10_000,
    bootstrap: Annotated[str, typer.Option(help="Kafka's brokers; default: a mock in this process.")] = "",
    model: Annotated[
        str, typer.Option(help="Of the part interactive; the others run a scripted engine.")
    ] = "smollm2",
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What batch work costs and takes: lines of a batch, requests through Kafka, and whoever waits beside them."""
    known = ("lines", "kafka", "rebalance", "interactive")
    wanted = parts.split(",")
    if unknown := [part for part in wanted if part not in known]:
        raise ConfigError(f"--parts are of {', '.join(known)}, not {unknown[0]}")
    console = Console(stderr=True)
    results: dict[str, Any] = {}
    for part in wanted:
        if part == "lines":
            from headrace.bench.kafka.batches import measure_batches

            results[part] = measure_batches(lines, pace, repeats, console)
        elif part == "interactive":
            from headrace.bench.kafka.kafka_interference import measure_interference

            # the same prompts come twice: a cached beginning would make the second time look better
            results[part] = measure_interference(
                model, bootstrap, repeats, seed, {"prefix_caching": False}, console
            )
        else:
            from headrace.bench.kafka.kafka_throughput import measure_kafka

            results[part] = measure_kafka(requests, bootstrap, repeats, console, churn=part == "rebalance")
    if as_json:
        print(json.dumps({part: result.as_dict() for part, result in results.items()}))
    else:
        for result in results.values():
            Console().print(result.table())


@app.command()
def structured(
    model: Model = "smollm2",
    count: Annotated[int, typer.Option(min=0, help="Schemas to answer; 0 leaves that part out.")] = 300,
    repeats: Annotated[int, typer.Option(min=0, help="Pairs of runs; 0 leaves that part out.")] = 5,
    quantization: Annotated[str, typer.Option(help="none or int8.")] = "none",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Structured outputs: whether answers fit their schemas, and what it costs a token at 16 at once."""
    from headrace.bench.engine.structured import measure_structured
    from workers.openmp_env import spin_briefly

    spin_briefly()  # as a worker runs
    found = measure_structured(model, count, repeats, seed, Console(stderr=True), quantization=quantization)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        Console().print(found.table())
