"""`headrace bench`: benchmarks of the engine. Each command imports its benchmark."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from headrace.cli.bench.options import Model, Plot, Repeats, Seed, app, names_of, report, report_tables
from headrace.cli.options import Json, stderr
from shared.errors import ConfigError


@app.command()
def engine(
    model: Model = "smollm2",
    against: Annotated[
        str,
        typer.Option(help="Other engines: hf, vllm, llamacpp, if installed; headrace-int8 and the like; or none."),
    ] = "hf",
    quantization: Annotated[
        Literal["none", "int8", "int4"], typer.Option(help="Quantization of Headrace's engine.")
    ] = "none",
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Number of concurrent requests.")] = 32,
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show how a step spends its time, and its lower bound, instead.")
    ] = False,
    null_model: Annotated[
        bool, typer.Option("--null-model", help="Show what a token costs a worker beside the model, instead.")
    ] = False,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences with --null-model.")] = 256,
    step_ms: Annotated[int, typer.Option(min=0, help="Milliseconds of a step with --null-model.")] = 25,
) -> None:
    """Measure the output tokens/s of the engine alone, in pairs with other engines on the same work."""
    from headrace.bench.engine.engine_throughput import measure_engine
    from headrace.bench.engine.profile import Profile
    from headrace.bench.harness.subprocess_run import run_in_subprocess
    from headrace.bench.worker.null_model import measure_null_model

    if null_model:
        result: Any = measure_null_model(model, sequences, step_ms)
    elif profile:
        result = Profile(
            **run_in_subprocess("headrace.bench.engine.profile", model, seed, concurrency, quantization)
        )
    else:
        result = measure_engine(
            model,
            against,
            repeats,
            seed,
            stderr,
            quantization=quantization,
            concurrency=concurrency,
        )
    report(result, as_json)


@app.command()
def perplexity(
    model: Model = "smollm2",
    formats: Annotated[str, typer.Option(help="Comma-separated: int8, int4, made at load; or none.")] = "int8,int4",
    checkpoint: Annotated[
        list[str], typer.Option(help="NAME=MODEL: another checkpoint of the model, in a format of its own.")
    ] = [],  # noqa: B006  typer copies it
    texts: Annotated[
        str, typer.Option(help="Comma-separated: licences, reference, code, descriptions.")
    ] = "licences,reference,code,descriptions",
    tokens: Annotated[int, typer.Option(min=2, help="Number of tokens of each text.")] = 5_121,
    as_json: Json = False,
) -> None:
    """Measure the quality of weight formats against float32 on several texts: perplexity and greedy agreement."""
    from headrace.bench.engine.perplexity import FORMATS, measure_perplexity
    from headrace.bench.engine.perplexity_texts import TEXTS
    from shared.runtime.logging import configure_logging
    from shared.settings import load

    wanted = [] if formats == "none" else names_of("--formats", formats, FORMATS)
    if not all(name and model for name, _, model in (each.partition("=") for each in checkpoint)):
        raise ConfigError("--checkpoint must be NAME=MODEL")
    configure_logging(load().settings, process="bench")  # the engine's log lines go to stderr
    others = {name: place for name, _, place in (each.partition("=") for each in checkpoint)}
    report(measure_perplexity(model, names_of("--texts", texts, TEXTS), tokens, wanted, others, stderr), as_json)


@app.command()
def batching(
    model: Model = "smollm2",
    parts: Annotated[
        str, typer.Option(help="Comma-separated: policies, stall, prefix, waiting, steps.")
    ] = "policies,stall,prefix,waiting,steps",
    budget: Annotated[int, typer.Option(min=17, help="Tokens per step while the long prompt arrives.")] = 32,
    plot: Plot = None,
    repeats: Repeats = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the gains of continuous batching, chunked prefill and the prefix cache."""
    from headrace.bench.engine.batching import PARTS, measure_batching
    from headrace.bench.engine.batching_report import svg, tables
    from shared.runtime.logging import configure_logging
    from shared.settings import load

    wanted = names_of("--parts", parts, PARTS)
    if plot is not None and "policies" not in wanted:
        raise ConfigError("--plot requires the part policies in --parts")
    configure_logging(load().settings, process="bench")  # the engine's log lines go to stderr
    result = measure_batching(model, wanted, budget, repeats, seed, stderr)
    if plot is not None:
        plot.write_text(svg(result))
    report_tables(result, tables, as_json)


@app.command()
def embeddings(
    model: Annotated[str, typer.Option(help="Folder, Hugging Face id, or all-minilm-l6-v2.")] = "all-minilm-l6-v2",
    inputs: Annotated[str, typer.Option(help="Tokens of an input: 64, 32-128 or exp:MEAN:MAX.")] = "32-128",
    repeats: Repeats = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure inputs and tokens per second of /v1/embeddings, in pairs with transformers' forward pass."""
    from headrace.bench.engine.embeddings import measure_embeddings

    result = measure_embeddings(model, inputs, repeats, seed, stderr)
    report(result, as_json)


@app.command()
def structured(
    model: Model = "smollm2",
    count: Annotated[int, typer.Option(min=0, help="Number of schemas to answer; 0 skips this part.")] = 300,
    repeats: Annotated[int, typer.Option(min=0, help="Number of pairs of runs; 0 skips this part.")] = 5,
    quantization: Annotated[str, typer.Option(help="none, int8 or int4.")] = "none",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Check structured outputs against their schemas, and measure their cost per token at 16 requests."""
    from headrace.bench.engine.structured import measure_structured
    from workers.startup.openmp_env import spin_briefly

    spin_briefly()  # as in a worker
    found = measure_structured(model, count, repeats, seed, stderr, quantization=quantization)
    report(found, as_json)


@app.command()
def speculation(
    model: Model = "smollm2",
    tasks: Annotated[
        str,
        typer.Option(help="Comma-separated: schema, edit, summary, article, minutes, mail, release, chat."),
    ] = "schema,edit,summary,article,minutes,mail,release,chat",
    streams: Annotated[str, typer.Option(help="Comma-separated numbers of concurrent requests.")] = "1,32",
    quantization: Annotated[Literal["none", "int8"], typer.Option(help="Quantization of the engine.")] = "none",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine.")] = None,
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Measure what speculation gains on structured answers, edits, summaries and chats, in turns without it."""
    from headrace.bench.engine.drafting.tasks import TASKS
    from headrace.bench.engine.speculation import measure_speculation
    from workers.startup.openmp_env import spin_briefly

    wanted = names_of("--tasks", tasks, [task.name for task in TASKS])
    counts = [int(each) for each in names_of("--streams", streams, [str(count) for count in range(1, 257)])]
    spin_briefly()  # as in a worker
    settings = {"quantization": quantization, "threads": threads}
    report(measure_speculation(model, wanted, counts, repeats, stderr, **settings), as_json)


@app.command("kv-tier")
def kv_tier(
    model: Model = "smollm2",
    tiers: Annotated[str, typer.Option(help="Comma-separated: memory, disk, redis.")] = "memory,disk,redis",
    parts: Annotated[
        str, typer.Option(help="Comma-separated: takeover, chats, batch, long.")
    ] = "takeover,chats,batch,long",
    prompt: Annotated[int, typer.Option(min=512, max=4096, help="Tokens of the prompt that is taken over.")] = 2000,
    quantization: Annotated[
        Literal["none", "int8", "int4"], typer.Option(help="Quantization of the engine.")
    ] = "none",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine.")] = None,
    repeats: Repeats = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a takeover with a KV tier against computing, and what the tier costs requests that share nothing."""
    from headrace.bench.tiers.kv_tiers import PARTS, measure_kv_tiers
    from workers.startup.openmp_env import spin_briefly

    names: Any = names_of("--tiers", tiers, ["memory", "disk", "redis"])
    spin_briefly()  # as in a worker
    settings = {"quantization": quantization, "threads": threads}
    wanted = names_of("--parts", parts, PARTS)
    report(measure_kv_tiers(model, names, wanted, prompt, repeats, seed, stderr, **settings), as_json)
