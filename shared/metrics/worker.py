"""Metrics of a worker process, with vLLM's names where it has the same metric.

Reference: vllm/v1/metrics/loggers.py of vLLM 0.32.
"""

from __future__ import annotations

from shared.metrics.declaration import (
    BETWEEN_TOKENS,
    FIRST_TOKEN,
    POWERS_OF_TWO,
    STEP,
    TOKENS,
    WHOLE_ANSWER,
    Declaration,
    VllmName,
)

# vLLM's buckets
VLLM_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
VLLM_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
VLLM_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
VLLM_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
VLLM_CHOICES = (1, 2, 5, 10, 20)

MODEL, BY_CLASS = ("model",), ("model", "class")
QUEUE = (*FIRST_TOKEN[:-2], 60, 300)


def _seconds(name: str, text: str, buckets: tuple[float, ...], vllm: VllmName) -> Declaration:
    return Declaration("histogram", f"headrace_worker_{name}_seconds", text, BY_CLASS, buckets, (vllm,))


def _per_request(name: str, text: str, buckets: tuple[float, ...], *vllm: VllmName) -> Declaration:
    return Declaration("histogram", f"headrace_worker_request_{name}", text, BY_CLASS, buckets, vllm)


def _gauge(name: str, text: str, *vllm: VllmName) -> Declaration:
    return Declaration("gauge", f"headrace_worker_{name}", text, MODEL, vllm=vllm)


def _counter(name: str, text: str, labels: tuple[str, ...] = MODEL, *vllm: VllmName) -> Declaration:
    return Declaration("counter", f"headrace_worker_{name}", text, labels, vllm=vllm)


REQUESTS = _counter(
    "requests", "Requests that ended: completed, failed or cancelled", ("model", "class", "outcome")
)
REQUEST_TOKENS = _counter(
    "tokens",
    "Tokens of ended requests: of the prompt, of its part that was found in the prefix cache (cached), and of the "
    "completion",
    ("model", "class", "kind"),
    VllmName("prompt_tokens", where={"kind": "prompt"}),
    VllmName("prompt_tokens_cached", where={"kind": "cached"}),
    VllmName("generation_tokens", where={"kind": "completion"}),
)
CHOICES = _counter(
    "choices",
    "Choices that ended, by finish_reason; abort and error for requests that were cancelled or failed",
    ("model", "class", "reason"),
    VllmName("request_success", keep={"reason": "finished_reason"}),
)
QUEUE_SECONDS = _seconds(
    "queue",
    "Time from submission until a worker takes the request",
    QUEUE,
    VllmName("request_queue_time_seconds", VLLM_REQUEST),
)
FIRST_SECONDS = _seconds(
    "time_to_first_token",
    "Time from submission until the first token is in the log",
    FIRST_TOKEN,
    VllmName("time_to_first_token_seconds", VLLM_FIRST_TOKEN),
)
BETWEEN_SECONDS = _seconds(
    "inter_token",
    "Time per token of a choice after the first",
    BETWEEN_TOKENS,
    VllmName("inter_token_latency_seconds", VLLM_TOKEN),
)
PER_TOKEN_SECONDS = _seconds(
    "time_per_token",
    "Mean time per token after the first, of each request",
    BETWEEN_TOKENS,
    VllmName("request_time_per_output_token_seconds", VLLM_TOKEN),
)
PREFILL_SECONDS = _seconds(
    "prefill",
    "Time from the lease to the first token: preparation, and computing the prompt",
    FIRST_TOKEN,
    VllmName("request_prefill_time_seconds", VLLM_REQUEST),
)
DECODE_SECONDS = _seconds(
    "decode",
    "Time from the first token of a run to its end",
    WHOLE_ANSWER,
    VllmName("request_decode_time_seconds", VLLM_REQUEST),
)
INFERENCE_SECONDS = _seconds(
    "inference",
    "Time from the lease to the end of the request",
    WHOLE_ANSWER,
    VllmName("request_inference_time_seconds", VLLM_REQUEST),
)
REQUEST_SECONDS = _seconds(
    "request",
    "Time from submission to the end of the request",
    WHOLE_ANSWER,
    VllmName("e2e_request_latency_seconds", VLLM_REQUEST),
)
PROMPT_TOKENS = _per_request(
    "prompt_tokens", "Tokens of each prompt", TOKENS, VllmName("request_prompt_tokens", TOKENS)
)
COMPLETION_TOKENS = _per_request(
    "completion_tokens", "Tokens of each answer", TOKENS, VllmName("request_generation_tokens", TOKENS)
)
MAX_TOKENS = _per_request(
    "max_tokens",
    "`max_tokens` of the requests that set it",
    TOKENS,
    VllmName("request_params_max_tokens", TOKENS),
)
NUM_CHOICES = _per_request(
    "choices", "Choices asked for, by `n`", VLLM_CHOICES, VllmName("request_params_n", VLLM_CHOICES)
)
RUNNING = _gauge("running", "Sequences in the batch", VllmName("num_requests_running"))
WAITING = _gauge(
    "waiting",
    "Sequences pulled and not yet in the batch",
    VllmName("num_requests_waiting"),
    VllmName("num_requests_waiting_by_reason", constant={"reason": "capacity"}),
)
KV_USAGE = _gauge("kv_usage_ratio", "Share of the KV blocks in use, 0 to 1", VllmName("kv_cache_usage_perc"))
KV_BLOCKS = _gauge("kv_blocks", "KV blocks of the engine")
KV_BLOCKS_USED = _gauge("kv_blocks_used", "KV blocks in use")
KV_INFO = Declaration(
    "gauge",
    "headrace_worker_kv_cache_info",
    "1; the labels describe the KV cache",
    ("model", "block_size", "num_blocks"),
    vllm=(VllmName("cache_config_info", keep={"block_size": "block_size", "num_blocks": "num_gpu_blocks"}),),
)
STEP_AGE = _gauge("step_age_seconds", "Age of the engine's current step; 0 between steps")
PREEMPTIONS = _counter("preemptions", "Sequences preempted by others", MODEL, VllmName("num_preemptions"))
PREFIX_QUERIES = _counter(
    "prefix_queries",
    "Tokens looked up in the prefix cache by sequences that began to run",
    MODEL,
    VllmName("prefix_cache_queries"),
)
PREFIX_HITS = _counter("prefix_hits", "Tokens found in the prefix cache", MODEL, VllmName("prefix_cache_hits"))
DRAFTS = _counter(
    "drafts",
    "Drafts of speculation: how often an answer had drafted tokens in a step",
    MODEL,
    VllmName("spec_decode_num_drafts"),
)
DRAFT_TOKENS = _counter(
    "draft_tokens", "Drafted tokens that steps computed", MODEL, VllmName("spec_decode_num_draft_tokens")
)
ACCEPTED_TOKENS = _counter(
    "accepted_draft_tokens",
    "Drafted tokens that became part of an answer, by their place in the draft, from 0",
    ("model", "position"),
    VllmName("spec_decode_num_accepted_tokens"),
    VllmName("spec_decode_num_accepted_tokens_per_pos", keep={"position": "position"}),
)
KV_TIER_QUERIES = _counter(
    "kv_tier_queries",
    "Tokens looked up in the KV tier, which the prefix cache did not have",
    MODEL,
    VllmName("external_prefix_cache_queries"),
)
KV_TIER_HITS = _counter(
    "kv_tier_hits", "Tokens loaded from the KV tier", MODEL, VllmName("external_prefix_cache_hits")
)
KV_TIER_LOADED_BYTES = _counter("kv_tier_loaded_bytes", "Bytes loaded from the KV tier")
KV_TIER_SAVED_BYTES = _counter("kv_tier_saved_bytes", "Bytes saved in the KV tier")
KV_TIER_LOAD_SECONDS = _counter("kv_tier_load_seconds", "Time of reading from the KV tier, beside the steps")
KV_TIER_DROPS = _counter(
    "kv_tier_drops",
    "Blocks that were not saved: too many waited, they were overwritten, or the KV tier could not take them",
)
KV_TIER_DAMAGED = _counter(
    "kv_tier_damaged", "Values found in the KV tier that differ from what was saved; they are removed"
)
KV_TIER_FAILURES = _counter("kv_tier_failures", "Calls of the KV tier that failed or were late")
KV_TIER_PENDING = _gauge("kv_tier_pending", "Blocks that wait to be saved in the KV tier")
ADAPTERS_LOADED = _gauge("adapters_loaded", "LoRA adapters in the worker's memory")
ADAPTER_LOADS = _counter(
    "adapter_loads",
    "LoRA adapters that were loaded into the worker's memory, that could not be loaded (failed), and that left it "
    "for others (evicted)",
    ("model", "outcome"),
)
ADAPTER_REQUESTS = Declaration(
    "gauge",
    "headrace_worker_adapter_requests_info",
    "Time of the look, in seconds since the epoch; the labels name the LoRA adapters that requests run with, and "
    "those that requests wait for",
    ("model", "max", "waiting", "running"),
    vllm=(
        VllmName(
            "lora_requests_info",
            keep={"max": "max_lora", "waiting": "waiting_lora_adapters", "running": "running_lora_adapters"},
        ),
    ),
)
BATCH_SIZE = Declaration(
    "histogram", "headrace_worker_batch_size", "Sequences computed by each step", MODEL, POWERS_OF_TWO
)
BATCH_TOKENS = Declaration(
    "histogram",
    "headrace_worker_batch_tokens",
    "Tokens computed by each step, of prompts and of answers",
    MODEL,
    VLLM_ITERATION,
    (VllmName("iteration_tokens_total", VLLM_ITERATION),),
)
STEP_SECONDS = Declaration(
    "histogram", "headrace_worker_step_seconds", "Time of each step of the engine", MODEL, STEP
)
LEASES_LOST = _counter("leases_lost", "Runs that ended because another worker claimed the request")
TAKEOVERS = _counter("takeovers", "Requests taken over from a worker that was lost")
FENCED_WRITES = _counter("fenced_writes", "Appends refused because another worker had claimed the request")
DEAD_LETTERS = _counter(
    "dead_letters", "Requests set aside because they will not run again, by error code", ("model", "reason")
)
CANARIES = _counter("canaries", "Canaries that an idle worker ran, by outcome", ("outcome",))
STARTUP = Declaration(
    "gauge",
    "headrace_worker_startup_seconds",
    "Time that the last start took, by phase, and in total; phases may overlap",
    ("phase",),
)
LOG_LINES_DROPPED = _counter("log_lines_dropped", "Log lines dropped because stderr could not take them", ())

OF_REQUESTS = (
    *(REQUESTS, REQUEST_TOKENS, CHOICES, QUEUE_SECONDS, FIRST_SECONDS, BETWEEN_SECONDS, PER_TOKEN_SECONDS),
    *(PREFILL_SECONDS, DECODE_SECONDS, INFERENCE_SECONDS, REQUEST_SECONDS, PROMPT_TOKENS, COMPLETION_TOKENS),
    *(MAX_TOKENS, NUM_CHOICES, LEASES_LOST, TAKEOVERS, FENCED_WRITES, DEAD_LETTERS),
)
OF_TIER = (
    *(KV_TIER_QUERIES, KV_TIER_HITS, KV_TIER_LOADED_BYTES, KV_TIER_SAVED_BYTES, KV_TIER_LOAD_SECONDS),
    *(KV_TIER_DROPS, KV_TIER_DAMAGED, KV_TIER_FAILURES, KV_TIER_PENDING),
)
OF_ENGINE = (
    *(RUNNING, WAITING, KV_USAGE, KV_BLOCKS, KV_BLOCKS_USED, KV_INFO, PREEMPTIONS, PREFIX_QUERIES, PREFIX_HITS),
    *(DRAFTS, DRAFT_TOKENS, ACCEPTED_TOKENS, BATCH_SIZE, BATCH_TOKENS, STEP_SECONDS, STEP_AGE),
    *OF_TIER,
)
OF_ADAPTERS = (ADAPTERS_LOADED, ADAPTER_LOADS, ADAPTER_REQUESTS)
WORKER = (*OF_REQUESTS, *OF_ENGINE, *OF_ADAPTERS, CANARIES, STARTUP, LOG_LINES_DROPPED)
