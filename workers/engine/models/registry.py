"""Registry of the architectures that Headrace computes with its own code, by their names in config.json.

All other decoders run transformers' code; see transformers.py. To add an architecture, write its module beside
this one (its config, its forward pass and the mapping of its weights) and add its name here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from workers.engine.kernels import Kernels
from workers.engine.models.checkpoint import WeightReader
from workers.engine.models.decoder import Decoder, DecoderConfig
from workers.engine.models.families.gemma import parse_gemma2, parse_gemma3
from workers.engine.models.families.gpt_oss import parse_gpt_oss
from workers.engine.models.families.mixture import parse_mixtral, parse_qwen3_moe
from workers.engine.models.llama import load_llama
from workers.engine.models.llama_config import LlamaModelConfig

Config = TypeVar("Config", bound=DecoderConfig)


@dataclass(frozen=True)
class Architecture(Generic[Config]):
    """Functions that read a checkpoint of one architecture.

    Attributes:
        parse_config: takes the architecture's name and config.json; raises ConfigError for unsupported features.
        load: takes the reader, the config, `max_model_len`, the kernels, and a callable that reports progress from
            0 to 1; raises ConfigError where the weights do not fit the config.
    """

    parse_config: Callable[[str, dict[str, Any]], Config]
    load: Callable[[WeightReader, Config, int, Kernels, Callable[[float], None]], Decoder]


LLAMA = Architecture(LlamaModelConfig.parse, load_llama)
ARCHITECTURES: Mapping[str, Architecture[Any]] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "Gemma2ForCausalLM": Architecture(parse_gemma2, load_llama),
    "Gemma3ForCausalLM": Architecture(parse_gemma3, load_llama),
    "MixtralForCausalLM": Architecture(parse_mixtral, load_llama),
    "Qwen3MoeForCausalLM": Architecture(parse_qwen3_moe, load_llama),
    "GptOssForCausalLM": Architecture(parse_gpt_oss, load_llama),
}
