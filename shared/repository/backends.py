"""The backends that run models of a repository: their names, and the files by which they are known."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import ConfigError

HEADRACE = "headrace"  # Headrace's own engine, or another runtime that generates, embeds or classifies texts
CHECKPOINT = "config.json"  # of a folder of Hugging Face, which has weights beside it
ENSEMBLE = "ensemble"  # a platform without a backend


@dataclass(frozen=True)
class Backend:
    """A backend.

    Attributes:
        files: names that the model has in the folder of a version, unless its description gives another one.
        platform: Triton's name of backend and format in one.
        aliases: other names of the backend that a description may use.
    """

    name: str
    files: tuple[str, ...]
    platform: str
    aliases: tuple[str, ...] = ()


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("onnxruntime", ("model.onnx",), "onnxruntime_onnx", ("onnx",)),
        Backend("pytorch", ("model.pt", "model.pt2"), "pytorch_libtorch", ("torch",)),
        Backend("tensorflow", ("model.savedmodel",), "tensorflow_savedmodel"),
        Backend("sklearn", ("model.skops",), "sklearn_skops", ("scikit-learn",)),
        Backend("xgboost", ("model.json", "model.ubj"), "xgboost"),
        Backend("lightgbm", ("model.txt",), "lightgbm"),
        Backend("python", ("model.py",), "python"),
        Backend(HEADRACE, (CHECKPOINT, "model.gguf"), HEADRACE),
    )
}
_BY_NAME = {name: backend for backend in BACKENDS.values() for name in (backend.name, *backend.aliases)}
_BY_PLATFORM = {backend.platform: backend for backend in BACKENDS.values()}


def resolve_backend(backend: str, platform: str) -> tuple[str, str]:
    """Return backend and platform of a model whose description gives one of them, or none; then both are empty.

    Raises ConfigError if Headrace does not have the backend, or if the two contradict each other.
    """
    if backend and backend not in _BY_NAME:
        raise ConfigError(f"backend must be one of {', '.join(_BY_NAME)}, got {backend[:100]!r}", param="backend")
    if not platform:
        found = _BY_NAME.get(backend)
        return (found.name, found.platform) if found else ("", "")
    if platform == ENSEMBLE and not backend:
        return "", ENSEMBLE
    if platform not in _BY_PLATFORM:
        allowed = ", ".join((*_BY_PLATFORM, ENSEMBLE))
        raise ConfigError(f"platform must be one of {allowed}, got {platform[:100]!r}", param="platform")
    if backend and _BY_NAME[backend] is not _BY_PLATFORM[platform]:
        raise ConfigError(f"platform {platform} contradicts backend {backend}", param="platform")
    return _BY_PLATFORM[platform].name, platform
