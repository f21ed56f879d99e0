"""The instances of a model."""

from __future__ import annotations

from shared.repository.spec import InstanceGroup, ModelSpec
from workers.predictors.instances import instance_specs


def test_each_instance_has_a_kind_and_a_gpu() -> None:
    groups = (InstanceGroup(count=2, kind="KIND_GPU", gpus=(0, 3)), InstanceGroup(kind="KIND_CPU"))
    found = [each.instance_groups for each in instance_specs(ModelSpec(name="m", instance_groups=groups))]
    gpus = [(InstanceGroup(kind="KIND_GPU", gpus=(gpu,)),) for gpu in (0, 0, 3, 3)]
    assert found == [*gpus, (InstanceGroup(kind="KIND_CPU"),)]


def test_model_without_groups_has_one_instance() -> None:
    assert len(instance_specs(ModelSpec(name="m", instance_groups=()))) == 1
