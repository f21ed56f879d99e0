"""Arguments of vLLM's engine from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.settings import load
from workers.runtimes.vllm.engine_arguments import engine_arguments, environment, has_native_sampling, identity

KNOWN = {"quantization", "tensor_parallel_size", "speculative_config", "block_size"}


def arguments(device_type: str = "cpu", **settings: Any) -> dict[str, Any]:
    return engine_arguments(load(settings).settings, Path("/models/m"), device_type, KNOWN)


def test_settings_become_arguments_of_the_same_meaning() -> None:
    made = arguments(max_model_len=512, max_num_seqs=4, prefix_caching=False, max_num_batched_tokens=1024)
    assert made["model"] == "/models/m"
    assert (made["max_model_len"], made["max_num_seqs"], made["max_num_batched_tokens"]) == (512, 4, 1024)
    assert made["enable_prefix_caching"] is False
    assert made["scheduling_policy"] == "priority"


def test_settings_at_their_default_leave_the_choice_to_vllm() -> None:
    assert not {"block_size", "max_num_batched_tokens", "gpu_memory_utilization"} & arguments().keys()


@pytest.mark.parametrize(
    ("device_type", "dtype", "expected"),
    [("cpu", "auto", "float32"), ("cuda", "auto", "auto"), ("cpu", "bfloat16", "bfloat16")],
)
def test_auto_is_float32_on_the_cpu_alone(device_type: str, dtype: str, expected: str) -> None:
    assert arguments(device_type, dtype=dtype)["dtype"] == expected


def test_tensor_parallel_size_is_passed_on() -> None:
    assert arguments(tensor_parallel_size=2)["tensor_parallel_size"] == 2
    settings = load({"tensor_parallel_size": 2}).settings
    assert "VLLM_USE_V2_MODEL_RUNNER" not in environment(settings), "its logits processors are not used"


def test_vllm_options_win_over_settings() -> None:
    made = arguments(block_size=32, vllm_options={"block_size": 64, "quantization": "fp8"})
    assert (made["block_size"], made["quantization"]) == (64, "fp8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_options": {"quantisation": "fp8"}}, "no option quantisation"),
        ({"vllm_options": {"model": "other"}}, "must not have model: use the setting model"),
        ({"vllm_options": {"async_scheduling": True}}, "must not have async_scheduling: the runtime sets it"),
        ({"quantization": "int8"}, "quantization must be none"),
        ({"scheduling": "static"}, "scheduling must be continuous"),
        ({"batch_invariant": True}, "batch_invariant must be False"),
        ({"device": "cuda"}, "device must be auto or cpu"),
    ],
)
def test_what_vllm_does_not_have_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        arguments(**settings)
    assert caught.value.param in settings


def test_the_cache_has_its_size_on_the_cpu_alone() -> None:
    assert arguments(kv_cache_gib=0.5)["kv_cache_memory_bytes"] == 2**29
    assert "kv_cache_memory_bytes" not in arguments("cuda")


def test_threads_are_an_environment_variable() -> None:
    assert environment(load({"threads": 2}).settings)["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in environment(load({}).settings)


def test_the_processor_of_logits_needs_the_runner_that_it_is_written_for() -> None:
    assert environment(load({}).settings)["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    several = {"vllm_options": {"tensor_parallel_size": 2}}
    assert "VLLM_USE_V2_MODEL_RUNNER" not in environment(load(several).settings)


def test_vllm_chooses_tokens_itself_with_speculation_or_several_gpus() -> None:
    assert has_native_sampling({})
    assert not has_native_sampling({"speculative_config": {"method": "ngram"}})
    assert not has_native_sampling({"tensor_parallel_size": 2})


def test_the_identity_depends_on_what_is_computed() -> None:
    assert identity({"model": "/a", "dtype": "float32"}) == identity({"dtype": "float32", "max_num_seqs": 2})
    assert identity({"dtype": "float32"}) != identity({"dtype": "bfloat16"})
