"""Arguments and environment of vLLM's engine, from the settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.settings import Settings

SETTINGS_OF_ALL_RUNTIMES = frozenset({"model", "served_model_name", "max_num_seqs"})
# without these values, tokens would be chosen before those of the step before are known, or logged in another way
FIXED_OPTIONS = frozenset({"async_scheduling", "logprobs_mode", "runner", "skip_tokenizer_init", "stream_interval"})
# settings that only the native engine has, and their values that change nothing
NATIVE_SETTINGS = {"quantization": "none", "scheduling": "continuous", "batch_invariant": False}
# arguments that say how much an engine can hold, not what it computes
CAPACITIES = frozenset(
    {"model", "max_num_seqs", "max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes"}
)
DEFAULT_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def engine_arguments(settings: Settings, folder: Path, device_type: str, known: Collection[str]) -> dict[str, Any]:
    """Return the arguments of vLLM's EngineArgs.

    A setting at its default leaves the choice to vLLM where vLLM has a better one.

    Args:
        device_type: of vLLM's platform.
        known: names of all arguments.

    Raises:
        ConfigError: a setting is not supported with vLLM, or an option is unknown.
    """
    _check(settings, device_type, known)
    dtype = "float32" if settings.dtype == "auto" and device_type == "cpu" else settings.dtype
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "max_num_seqs": settings.max_num_seqs,
        "max_model_len": settings.max_model_len,
        "enable_prefix_caching": settings.prefix_caching,
        "skip_tokenizer_init": True,
        "scheduling_policy": "priority",
        "async_scheduling": False,  # the processor of logits needs the tokens of the step before
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if device_type == "cpu":
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    for name in ("block_size", "max_num_batched_tokens", "gpu_memory_utilization", "tensor_parallel_size"):
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            arguments[name] = value
    return arguments | settings.vllm_options


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables that vLLM must find when it is imported."""
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the scheduler runs in the worker's thread
    if has_native_sampling({"tensor_parallel_size": settings.tensor_parallel_size, **settings.vllm_options}):
        variables["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # its logits processors are those of the other runner
    if settings.threads is not None:
        variables["OMP_NUM_THREADS"] = str(settings.threads)
    return variables


def has_native_sampling(options: Mapping[str, Any]) -> bool:
    """Return whether vLLM can run the processor of logits that chooses tokens; see `sampling_arguments`."""
    sizes = (options.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline", "data"))
    return options.get("speculative_config") is None and all(size == 1 for size in sizes)


def identity(arguments: Mapping[str, Any]) -> str:
    """Return a text that is equal for equal arguments that may change what is computed."""
    return json.dumps({name: arguments[name] for name in sorted(arguments.keys() - CAPACITIES)}, default=str)


def _check(settings: Settings, device_type: str, known: Collection[str]) -> None:
    for name in settings.vllm_options:
        if name in SETTINGS_OF_ALL_RUNTIMES:
            raise ConfigError(f"vllm_options must not have {name}: use the setting {name}", param="vllm_options")
        if name in FIXED_OPTIONS:
            raise ConfigError(f"vllm_options must not have {name}: the runtime sets it", param="vllm_options")
        if name not in known:
            raise ConfigError(f"vllm_options: this version of vLLM has no option {name}", param="vllm_options")
    for name, value in NATIVE_SETTINGS.items():
        if getattr(settings, name) != value:
            raise ConfigError(
                f"{name} must be {value} with runtime = vllm, got {getattr(settings, name)}; "
                "vLLM's own options go to vllm_options",
                param=name,
            )
    if settings.device not in ("auto", device_type):
        raise ConfigError(
            f"device must be auto or {device_type} with this installation of vLLM, got {settings.device}",
            param="device",
        )
