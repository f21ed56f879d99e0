"""The parameters in a model's description, which are text, as values."""

from __future__ import annotations

from shared.errors import ConfigError
from shared.numbers import decimal, whole
from shared.repository.spec import ModelSpec

SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
FLAGS = {"0": False, "1": True, "false": False, "true": True}


def number(spec: ModelSpec, name: str, default: int | None = None) -> int | None:
    """Return a count. Raises ConfigError."""
    text = spec.parameters.get(name)
    if text is None:
        return default
    if (value := whole(text)) is None:
        raise ConfigError(f"parameter {name} of model {spec.name} must be a number, got {text[:64]!r}", param=name)
    return value


def seconds(spec: ModelSpec, name: str, default: float) -> float:
    """Return a duration above 0. Raises ConfigError."""
    text = spec.parameters.get(name, str(default))
    if not (value := decimal(text)):
        raise ConfigError(f"parameter {name} of model {spec.name} must be seconds, got {text[:64]!r}", param=name)
    return value


def flag(spec: ModelSpec, name: str, *, default: bool = False) -> bool:
    """Return a switch, 0 or 1, false or true. Raises ConfigError."""
    text = spec.parameters.get(name)
    if text is None:
        return default
    if text.lower() not in FLAGS:
        raise ConfigError(f"parameter {name} of model {spec.name} must be 0 or 1, got {text!r}", param=name)
    return FLAGS[text.lower()]


def memory(spec: ModelSpec, name: str) -> int | None:
    """Return bytes, given as a number or with a suffix K, M or G. Raises ConfigError."""
    text = spec.parameters.get(name)
    if text is None:
        return None
    digits = text.upper().rstrip("KMG")
    if (value := whole(digits)) is None or text.upper()[len(digits) :] not in SUFFIXES:
        raise ConfigError(
            f"parameter {name} of model {spec.name} must be bytes, or a number with the suffix K, M or G, "
            f"got {text[:64]!r}",
            param=name,
        )
    return value * SUFFIXES[text.upper()[len(digits) :]]
