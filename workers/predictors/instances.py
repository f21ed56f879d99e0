"""The instances of a model."""

from __future__ import annotations

import msgspec

from shared.repository.spec import InstanceGroup, ModelSpec


def instance_specs(spec: ModelSpec) -> list[ModelSpec]:
    """Return a description for each instance: its only instance group has its kind, and its GPU if one is named."""
    found: list[ModelSpec] = []
    for group in spec.instance_groups or (InstanceGroup(),):
        owns = [InstanceGroup(kind=group.kind, gpus=(gpu,)) for gpu in group.gpus]
        for own in owns or [InstanceGroup(kind=group.kind)]:
            found += [msgspec.structs.replace(spec, instance_groups=(own,))] * group.count
    return found
