"""Choice of the format of a checkpoint's matrices, by the `quantization_config` of config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import ConfigError
from workers.engine.models.stored.awq import Awq
from workers.engine.models.stored.compressed_tensors import parse_compressed_tensors
from workers.engine.models.stored.fp8 import Fp8
from workers.engine.models.stored.gptq import Gptq
from workers.engine.models.stored.interface import Plain, StoredFormat
from workers.engine.models.stored.mxfp4 import Mxfp4

METHODS: Mapping[str, Callable[[dict[str, Any]], StoredFormat]] = {
    "gptq": Gptq.parse,
    "awq": Awq.parse,
    "fp8": Fp8.parse,
    "compressed-tensors": parse_compressed_tensors,
    "mxfp4": Mxfp4.parse,
}


def parse_stored_format(raw: dict[str, Any]) -> StoredFormat:
    """Parse config.json. Raises ConfigError for a format that is not supported."""
    config = raw.get("quantization_config")
    if not config:
        return Plain()
    method = str(config.get("quant_method")) if isinstance(config, dict) else "None"
    if method not in METHODS:
        raise ConfigError(
            f"the checkpoint is quantized ({method}); supported: {', '.join(METHODS)}, and float32, bfloat16 and "
            "float16",
            param="model",
        )
    return METHODS[method](config)
