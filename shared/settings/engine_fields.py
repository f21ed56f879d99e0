"""Settings of the engine in a worker: device, precision, batches, KV cache and text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from shared.settings.kv_tier_fields import KVTierFields

QuantizationName = Literal["none", "int8", "int4"]
SpeculationMode = Literal["auto", "off"]
WatermarkAlgorithm = Literal["green_list", "gumbel"]
ReasoningParserName = Literal["auto", "off", "think", "mistral"]


class EngineFields(KVTierFields):
    """Settings that only workers read."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="device that the engine runs on")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of weights and activations; auto means float32 on CPU and the checkpoint's type on CUDA",
    )
    quantization: QuantizationName = Field(
        "none",
        description="int8: weights of 8 bits; int4: weights of 4 bits in groups of 16, calibrated at the first "
        "start; with both, activations have 16 bits on CPU",
    )
    reasoning_parser: ReasoningParserName = Field(
        "auto",
        description="format in which the model writes its reasoning, which chats return apart from the text; "
        "think: `<think> … </think>`; mistral: `[THINK] … [/THINK]`; auto: the one that the model's chat template "
        "and tokenizer have, if any; off: nothing is set apart",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of one engine; default: the number of cores")
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="processes of one worker among which heads and MLPs are divided, each with its share of the "
        "CPU threads or a GPU of its own; with runtime = vllm, its option of that name",
    )
    max_model_len: int | None = Field(
        None, ge=8, description="maximum tokens of prompt and answer together; default: what the model supports"
    )
    max_num_seqs: int = Field(32, ge=1, le=4096, description="maximum sequences in one batch")
    max_num_batched_tokens: int = Field(512, ge=1, description="maximum tokens computed in one engine step")
    scheduling: Literal["continuous", "dynamic", "static"] = Field(
        "continuous",
        description="continuous: requests join the running batch at any step; dynamic, static: they start in "
        "batches, for comparison",
    )
    batch_wait: float = Field(
        0.05,
        ge=0,
        le=60,
        description="seconds that a dynamic batch waits for more requests before it starts incomplete",
    )
    speculation: SpeculationMode = Field(
        "auto",
        description="auto: tokens that are likely to come are computed together with the one before them, where "
        "that saves time; answers have the same tokens as with off",
    )
    max_draft_tokens: int = Field(
        12, ge=1, le=64, description="maximum tokens of one answer that speculation adds to a step"
    )
    draft_model: Path | None = Field(
        None, description="folder of a small model with the same vocabulary that drafts tokens too; on CPU only"
    )
    block_size: int = Field(16, ge=1, le=256, description="tokens per block of the KV cache")
    prefix_caching: bool = Field(
        True, description="reuse the computed beginnings of a tenant's earlier prompts and answers"
    )
    kv_cache_gib: float = Field(2.0, gt=0, description="memory for the KV cache on CPU, in GiB")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="fraction of a GPU's memory for weights and KV cache together"
    )
    batch_invariant: bool = Field(
        False,
        description="bit-identical rows in any batch on a GPU too, by computing each step at the largest size",
    )
    special_tokens_in_messages: bool = Field(
        False, description="take the spelling of a control token in a chat's texts as that token, not as text"
    )
    special_tokens_in_prompts: bool = Field(
        True, description="take the spelling of a special token in a prompt or an input as that token, not as text"
    )
    watermark_algorithm: WatermarkAlgorithm = Field(
        "green_list",
        description="mark of the answers to requests with `watermark`; green_list: TGI's, which prefers a share of "
        "the vocabulary after each token; gumbel: leaves the distribution of answers as it is, and needs a "
        "temperature above 0",
    )
    watermark_key: SecretStr = Field(
        SecretStr("15485863"),
        description="secret integer from 1 to 4294967295, the same for all workers; the default is TGI's, which is "
        "public",
    )
    watermark_gamma: float = Field(0.5, ge=0.01, le=0.99, description="share of the vocabulary that is green")
    watermark_delta: float = Field(2.0, gt=0, le=100, description="addition to the logits of green tokens")
