"""The device of an instance."""

from __future__ import annotations

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec


def cuda_device(spec: ModelSpec, *, available: bool) -> int | None:
    """Return the GPU of the description's first instance group, or None for the CPU. Raises ConfigError."""
    group = spec.instance_groups[0]
    if group.kind == "KIND_GPU" and not available:
        raise ConfigError(
            f"model {spec.name} has instances of KIND_GPU, but its backend {spec.backend} finds no CUDA GPU",
            param="instance_group",
        )
    if group.kind == "KIND_CPU" or not available:
        return None
    return group.gpus[0] if group.gpus else 0
