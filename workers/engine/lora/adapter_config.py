"""adapter_config.json of PEFT: ranks and scales of an adapter's modules.

Reference: LoraConfig of PEFT 0.18 (src/peft/tuners/lora/config.py), and `get_pattern_key` of its tuners.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import ConfigError

ALL_LINEAR = "all-linear"
MAX_PATTERNS = 1_000
MAX_PATTERN_CHARS = 200
MAX_WILDCARDS = 2  # of one pattern: Python's search takes time in that power of a name's length
PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_-]|\\?\.|\\d)(?:[A-Za-z0-9_-]|\\\.|\\d[+*]?|\.[+*]?)*\$?")
# What changes the product in a way that is not computed here, with the values that leave it as it is.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "alora_invocation_string": (None, ""),
}
CHANGES_BASE = ("pissa", "olora", "corda")  # these initializations change the base model's weights, too

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class AdapterConfig:
    """Ranks and scales.

    Attributes:
        targets: names of adapted modules, or their last parts; None if they are a regular expression.
        whole: each module that `targets` names must have matrices.
    """

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: frozenset[str] | None
    whole: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        return _matching(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return what a module's product is multiplied by."""
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def aims_at(self, module: str) -> bool:
        """Return whether a module must have matrices."""
        if not self.whole:
            return False
        assert self.targets is not None
        return ALL_LINEAR in self.targets or any(
            module == target or module.endswith(f".{target}") for target in self.targets
        )


def parse_adapter_config(path: Path, data: bytes, max_rank: int) -> AdapterConfig:
    """Parse the contents of adapter_config.json. Raises ConfigError, with the file and the reason."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON", param="lora_path") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a JSON object", param="lora_path")
    _check_kind(path, raw)
    rank, alpha = _rank(path, "r", raw.get("r"), max_rank), _number(path, "lora_alpha", raw.get("lora_alpha"))
    rank_pattern = {
        name: _rank(path, f"rank_pattern[{name}]", value, max_rank)
        for name, value in _patterns(path, "rank_pattern", raw).items()
    }
    alpha_pattern = {
        name: _number(path, f"alpha_pattern[{name}]", value)
        for name, value in _patterns(path, "alpha_pattern", raw).items()
    }
    targets = _targets(path, raw.get("target_modules"))
    partial = any(raw.get(name) not in (None, []) for name in ("layers_to_transform", "exclude_modules"))
    return AdapterConfig(
        rank=rank,
        alpha=alpha,
        rank_stabilized=raw.get("use_rslora") is True,
        targets=targets,
        whole=targets is not None and not partial,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )


def _check_kind(path: Path, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type", "LORA") != "LORA":
        raise ConfigError(f"{path}: peft_type must be LORA, got {str(raw['peft_type'])[:64]!r}", param="lora_path")
    for name, allowed in NEUTRAL.items():
        if raw.get(name) not in allowed:
            raise ConfigError(
                f"{path}: {name} must be {' or '.join(json.dumps(each) for each in allowed[1:])}, other values are "
                "not supported",
                param="lora_path",
            )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ConfigError(
            f"{path}: init_lora_weights {start[:32]!r} changes the base model; convert the adapter to plain LoRA",
            param="lora_path",
        )


def _targets(path: Path, value: Any) -> frozenset[str] | None:
    if isinstance(value, str) and value:
        return frozenset([ALL_LINEAR]) if value == ALL_LINEAR else None
    if isinstance(value, list) and value and all(isinstance(each, str) and each for each in value):
        return frozenset(value)
    raise ConfigError(f"{path}: target_modules must be a list of names, or a text", param="lora_path")


def _patterns(path: Path, name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    found = raw.get(name) or {}
    if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
        raise ConfigError(f"{path}: {name} must be an object of at most {MAX_PATTERNS} fields", param="lora_path")
    for pattern in found:
        wildcards = pattern.count("*") + pattern.count("+")
        if len(pattern) > MAX_PATTERN_CHARS or wildcards > MAX_WILDCARDS or not PATTERN.fullmatch(pattern):
            raise ConfigError(
                f"{path}: {name} has {pattern[:64]!r}; its keys must be names of modules, with . or \\d for any "
                f"character or digit, and at most {MAX_WILDCARDS} times * or +",
                param="lora_path",
            )
    return found


def _matching(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """Return the value of the first pattern that matches the end of a module's name, as PEFT does."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _rank(path: Path, name: str, value: Any, max_rank: int) -> int:
    if type(value) is not int or not 1 <= value <= max_rank:
        raise ConfigError(
            f"{path}: {name} must be between 1 and max_lora_rank {max_rank}, got {str(value)[:64]}",
            param="lora_path",
        )
    return value


def _number(path: Path, name: str, value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path}: {name} must be a number, got {str(value)[:64]}", param="lora_path")
    return number
