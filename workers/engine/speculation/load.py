"""Construction of an engine's speculator from its configuration."""

from __future__ import annotations

import structlog
import torch

from workers.engine.config import EngineConfig
from workers.engine.kernels import Kernels
from workers.engine.models.registry import ARCHITECTURES
from workers.engine.speculation.draft_model import DraftModel
from workers.engine.speculation.earlier_answers import EarlierAnswers
from workers.engine.speculation.ngrams import NgramDrafter
from workers.engine.speculation.speculator import Speculator
from workers.engine.speculation.step_costs import StepCosts, step_clock

_log = structlog.get_logger(__name__)


def load_speculator(
    config: EngineConfig, architecture: str, kernels: Kernels, device: torch.device, model: DraftModel | None = None
) -> Speculator | None:
    """Return the speculator of an engine; None if it is off, or would change the last bits of logits.

    A drafted row has the bits of a step of its own where rows are computed independently: with the C++ kernels, and
    in CUDA graphs of one size.
    """
    if config.speculation == "off":
        return None
    exact = kernels.exact_rows and architecture in ARCHITECTURES
    if not exact and not (device.type == "cuda" and config.batch_invariant):
        _log.info("speculation_off", reason="the bits of a row may depend on how many rows a step has")
        return None
    drafters = (EarlierAnswers(), NgramDrafter())
    return Speculator(drafters, StepCosts(), config.max_draft_tokens, step_clock(device), model=model)
