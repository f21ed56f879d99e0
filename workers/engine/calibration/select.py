"""Choice of the formats whose weights are rounded by a calibration."""

from __future__ import annotations

from workers.engine.config import EngineConfig
from workers.engine.kernels import Kernels
from workers.engine.models.decoder import DecoderConfig
from workers.engine.text.tokenizer import Tokenizer

CALIBRATED = frozenset({"int4"})  # values of the setting `quantization`


def with_calibrated_weights(
    kernels: Kernels, config: EngineConfig, model_config: DecoderConfig, tokenizer: Tokenizer
) -> Kernels:
    """Return kernels whose format has the model's rounded weights, if it is one that is calibrated.

    Ranks, which have parts of the matrices, round to the nearest integers instead.
    """
    if config.quantization not in CALIBRATED or config.tensor_parallel_size > 1:
        return kernels
    from workers.engine.calibration.load import rounded_weights  # noqa: PLC0415  not needed for other formats

    return kernels.with_quantization(rounded_weights(config, model_config, tokenizer))
