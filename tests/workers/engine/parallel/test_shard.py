"""Division of models: what each rank reads, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from shared.errors import ConfigError
from tests.support.checkpoints import save_checkpoint
from tests.support.engine_driver import load
from tests.support.gguf_files import SHAPE, random_model
from tests.support.parallel_ranks import logits_of_ranks
from tests.support.stored_checkpoints import awq, gptq, save_stored
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine
from workers.engine.models.loader import read_model_config
from workers.engine.parallel.part import RankPart
from workers.engine.parallel.shard import Shard, divisible_model
from workers.engine.tiers.options import TierOptions

PROMPT = list(b"a river runs to the mill")
GROUPS = {"bits": 4, "group_size": 32}


def distance(folder: Path, size: int, quantization: str = "none") -> float:
    """Return by how much the logits of ranks differ from those of one process, as a share of their spread."""
    whole = logits_of_ranks(folder, 1, PROMPT, quantization)
    return float((logits_of_ranks(folder, size, PROMPT, quantization) - whole).abs().max() / whole.std())


@pytest.mark.parametrize("name", ["llama-biased", "qwen3", "gemma2"])
def test_two_ranks_compute_the_same_logits(checkpoints: Callable[[str], Path], name: str) -> None:
    assert distance(checkpoints(name), 2) < 1e-4


def test_ranks_may_share_key_value_heads(eight_heads: Path) -> None:
    assert distance(eight_heads, 4) < 1e-4


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_ranks_lose_no_more_by_quantization(llama: Path, quantization: str) -> None:
    exact = logits_of_ranks(llama, 1, PROMPT)
    one, two = ((logits_of_ranks(llama, size, PROMPT, quantization) - exact).std() for size in (1, 2))
    assert 0 < two < 1.3 * one


@pytest.mark.parametrize(
    ("store", "config"),
    [
        (gptq(4, 32, scattered=True), {"quant_method": "gptq", "desc_act": True}),
        (awq(32), {"quant_method": "awq", "version": "gemm", "zero_point": True}),
    ],
    ids=["gptq-desc_act", "awq"],
)
def test_stored_integers_are_divided(tmp_path: Path, store, config: dict[str, object]) -> None:
    folder = save_stored(tmp_path / "model", random_model(LlamaConfig(**SHAPE)), store, {**GROUPS, **config})
    assert distance(folder, 2) < 1e-2


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("llama", 4, "tensor_parallel_size 4 does not divide the model's num_attention_heads 6; it can be 1, 2$"),
        ("llama", 3, "does not divide the model's num_key_value_heads 2 and intermediate_size 80"),
        ("mixtral", 2, "tensor_parallel_size must be 1 for MixtralForCausalLM: experts are not divided"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(
    checkpoints: Callable[[str], Path], name: str, size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load(checkpoints(name), device="cpu", tensor_parallel_size=size)
    assert refused.value.param == "tensor_parallel_size"


def test_models_in_foreign_code_are_refused(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig

    shape = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = save_checkpoint(tmp_path, GPTNeoXConfig(**shape, intermediate_size=32))
    with pytest.raises(ConfigError, match="must be 1 for GPTNeoXForCausalLM: only dense models"):
        load(folder, device="cpu", tensor_parallel_size=2)


def test_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size must be 1 for encoders"):
        EncoderEngine.load(EngineConfig(tmp_path, tensor_parallel_size=2))


@pytest.mark.parametrize("part", ["kv_tier", "lora_dir"])
def test_parts_that_ranks_do_not_have_are_refused(llama: Path, part: str) -> None:
    given = {"lora_dir": llama} if part == "lora_dir" else {"tier": TierOptions(kind="memory")}
    with pytest.raises(ConfigError, match=f"{part} is not supported with tensor_parallel_size above 1"):
        load(llama, device="cpu", tensor_parallel_size=2, **given)


def test_ranks_share_the_memory_of_the_cache(llama: Path) -> None:
    """Each of two ranks has half of the memory and half of the heads, so as many blocks as one process."""
    config = EngineConfig(llama, device="cpu", kv_cache_gib=0.001)
    whole = divisible_model(read_model_config(llama), 1)
    blocks = [RankPart(config, Shard(0, size, whole), torch.float32).size().num_blocks for size in (1, 2)]
    assert blocks[0] == blocks[1] < 32 * 32
