"""Configuration of one engine, validated when it is constructed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch

from shared.errors import ConfigError
from shared.numbers import whole
from shared.settings import QuantizationName, ReasoningParserName, Settings, SpeculationMode, user_folder
from workers.engine.quantization.formats import FORMATS
from workers.engine.sampling.watermark import GreenListMark, TokenMark, make_mark
from workers.engine.scheduling.batching_policies import Scheduling
from workers.engine.tiers.options import TierOptions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EngineConfig:
    """Configuration of one engine with one model.

    Attributes:
        model: folder with config.json, safetensors and a tokenizer.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:<n>".
        dtype: "auto" (float32 on the CPU, the checkpoint's own on CUDA) or a key of DTYPES.
        max_model_len: most tokens of prompt and answer together; None takes the checkpoint's.
        max_num_seqs: most sequences that run at once.
        max_num_batched_tokens: most tokens that one step computes, over all sequences.
        tenant_weights: share of a class's tokens that each tenant gets while several wait; the default is 1.
        scheduling: when a waiting sequence may start; see scheduling/batching_policies.py.
        batch_wait: seconds that a dynamic batch waits to fill.
        speculation: "auto" drafts tokens where it pays, "off" never; the answers are the same.
        max_draft_tokens: most drafted tokens of one sequence in a step.
        draft_model: folder of a small model with the same vocabulary, which drafts too.
        block_size: tokens in a KV block.
        prefix_caching: reuse the computed beginning of a prompt for requests that begin alike.
        kv_cache_gib: memory for KV blocks on the CPU.
        gpu_memory_utilization: share of a GPU's memory for weights and KV blocks together.
        batch_invariant: compute a row's logits to the same bits in any batch, on CUDA too.
        num_kv_blocks: number of KV blocks; None takes as many as fit the memory.
        quantization: weight format of linear layers and output head; see quantization/formats.py.
        reasoning_parser: format of the model's reasoning: "auto", "off" or a name; see text/reasoning_format.py.
        cache_dir: folder of compiled kernels; None uses plain torch.
        watermark: mark of the answers to requests that ask for one.
        lora_dir: folder of the LoRA adapters; None computes no adapters.
        max_lora_rank: maximum rank of an adapter.
        shared_weights: map packed weights from a file in `cache_dir`, which other processes map too.
        threads: CPU threads of one step; None leaves torch's choice.
        tensor_parallel_size: processes among which heads and MLPs are divided; see parallel/.
        special_tokens_in_messages, special_tokens_in_prompts: see `Tokenizer`.
        tier: where blocks of the KV cache are kept in addition; see tiers/options.py.
    """

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    scheduling: Scheduling = "continuous"
    batch_wait: float = 0.05
    speculation: SpeculationMode = "auto"
    max_draft_tokens: int = 12
    draft_model: Path | None = None
    block_size: int = 16
    prefix_caching: bool = True
    kv_cache_gib: float = 2.0
    gpu_memory_utilization: float = 0.9
    batch_invariant: bool = False
    num_kv_blocks: int | None = None
    quantization: QuantizationName = "none"
    reasoning_parser: ReasoningParserName = "auto"
    cache_dir: Path | None = field(default_factory=lambda: user_folder("XDG_CACHE_HOME", ".cache"))
    lora_dir: Path | None = None
    max_lora_rank: int = 64
    shared_weights: bool = False
    threads: int | None = None
    tensor_parallel_size: int = 1
    special_tokens_in_messages: bool = False
    special_tokens_in_prompts: bool = True
    watermark: TokenMark = field(default_factory=GreenListMark)
    tier: TierOptions = field(default_factory=TierOptions)

    @property
    def step_sizes(self) -> str:
        """The bounds of a step, from which the sizes of recorded steps follow."""
        return f"{self.max_num_seqs} {self.max_num_batched_tokens} {self.batch_invariant}"

    def tokenizer_options(self) -> dict[str, Any]:
        """Return the options of `Tokenizer`."""
        names = ("reasoning_parser", "special_tokens_in_messages", "special_tokens_in_prompts")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: Settings, folder: Path) -> EngineConfig:
        """Return the configuration from the settings with the same names, for the model in `folder`."""
        common = {f.name for f in fields(cls)} & Settings.model_fields.keys() - {"model", "shared_weights"}
        shared = settings.workers > 1 if settings.shared_weights is None else settings.shared_weights
        given = {name: getattr(settings, name) for name in common}
        tier = TierOptions.from_settings(settings)
        return cls(folder, shared_weights=shared, watermark=make_mark(settings), tier=tier, **given)

    def __post_init__(self) -> None:
        counts = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "threads")
        for name in (*counts, "max_draft_tokens", "tensor_parallel_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}", param=name)
        if self.num_kv_blocks is not None and self.num_kv_blocks < 1:
            raise ConfigError(f"num_kv_blocks must be at least 1, got {self.num_kv_blocks}", param="num_kv_blocks")
        if self.tier.kind != "off" and not self.prefix_caching:
            raise ConfigError("kv_tier needs prefix_caching", param="kv_tier")
        for tenant, weight in self.tenant_weights.items():
            if not weight > 0:
                raise ConfigError(
                    f"tenant_weights: the weight of {tenant} must be above 0, got {weight}", param="tenant_weights"
                )
        if self.scheduling not in get_args(Scheduling):
            raise ConfigError(f"scheduling must be one of {', '.join(get_args(Scheduling))}", param="scheduling")
        if not self.batch_wait >= 0:
            raise ConfigError(f"batch_wait must be at least 0, got {self.batch_wait}", param="batch_wait")
        if not self.kv_cache_gib > 0:
            raise ConfigError(f"kv_cache_gib must be above 0, got {self.kv_cache_gib}", param="kv_cache_gib")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}",
                param="gpu_memory_utilization",
            )
        if self.dtype not in ("auto", *DTYPES):
            raise ConfigError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {self.dtype}", param="dtype")
        if self.quantization not in FORMATS:
            raise ConfigError(
                f"quantization must be one of {', '.join(FORMATS)}, got {self.quantization}", param="quantization"
            )

    def torch_device(self) -> torch.device:
        """Return the torch device. Raises ConfigError for a device that this machine does not have."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kind, _, index = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (index and whole(index) is None):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:<n>, got {self.device}", param="device")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {self.device} does not exist on this machine", param="device")
        return torch.device(self.device)

    def torch_dtype(self, device: torch.device, checkpoint: torch.dtype) -> torch.dtype:
        """Return the dtype of weights and cache, given the checkpoint's own."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        return torch.float32 if device.type == "cpu" else checkpoint


def checkpoint_dtype(name: str) -> torch.dtype:
    """Return the dtype that a checkpoint names. Raises ConfigError if the engine does not support it."""
    if name not in DTYPES:
        raise ConfigError(f"the checkpoint's dtype must be one of {', '.join(DTYPES)}, got {name}", param="model")
    return DTYPES[name]
