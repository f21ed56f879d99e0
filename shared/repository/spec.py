"""Description of one model of the repository: the fields of Triton's ModelConfig that Headrace honours.

Names and defaults are Triton's (common/protobuf/model_config.proto). Times are in microseconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.protocol import DataType


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input or output.

    Attributes:
        dims: without the batch dimension, if the model has one; -1 for any size.
        reshape: the dimensions that the model itself sees, if they are others.
        label_filename: file of the names of the output's classes, one a line.
        labels: those names, once the model is loaded.
    """

    name: str
    datatype: DataType
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    allow_ragged_batch: bool = False
    label_filename: str = ""
    labels: tuple[str, ...] = ()


class QueuePolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bounds of one priority level; 0 for none. A request that waits too long is refused, or goes to the end."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


class DynamicBatching(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Batching of requests that arrive within a short time."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: dict[int, QueuePolicy] = {}


ControlKind = Literal[
    "CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_READY", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_CORRID"
]


class SequenceControl(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input that tells the model where a request is in its sequence; `false_true` are its two values."""

    name: str
    kind: ControlKind
    datatype: DataType
    false_true: tuple[float, float] | None = None


class SequenceState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """State that an output of one step carries to an input of the next; it begins with zeros."""

    input_name: str
    output_name: str
    datatype: DataType
    dims: tuple[int, ...]


class SequenceBatching(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Batching of requests of sequences: `direct` gives each sequence a slot, `oldest` batches the oldest ones."""

    strategy: Literal["direct", "oldest"] = "direct"
    max_sequence_idle_microseconds: int = 1_000_000
    control_input: tuple[SequenceControl, ...] = ()
    state: tuple[SequenceState, ...] = ()
    max_candidate_sequences: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    minimum_slot_utilization: float = 0.0


class EnsembleStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of an ensemble; the maps lead from the model's names to the ensemble's. Version -1 is the newest."""

    model_name: str
    model_version: int = -1
    input_map: dict[str, str]
    output_map: dict[str, str]


class InstanceGroup(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Instances of the model that run at the same time."""

    count: int = 1
    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"] = "KIND_AUTO"
    gpus: tuple[int, ...] = ()


class WarmUpInput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input of a warm-up request: zeros, random numbers, or a file of the model's folder `warmup`."""

    datatype: DataType
    dims: tuple[int, ...]
    source: Literal["zero_data", "random_data", "input_data_file"] = "zero_data"
    file: str = ""


class WarmUp(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that each instance computes before it is ready."""

    name: str = ""
    batch_size: int = 0
    count: int = 1
    inputs: dict[str, WarmUpInput] = {}


class VersionPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Versions to load: the newest `latest`, those in `specific`, or all."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def choose(self, available: list[int]) -> list[int]:
        """Return the versions to load, oldest first."""
        found = sorted(available)
        if self.specific:
            return [version for version in found if version in self.specific]
        return found if self.latest is None else found[-self.latest :]


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of the repository.

    Attributes:
        backend: what runs it, a module of `workers.predictors`, or "headrace" for a model that generates, embeds or
            classifies texts in Headrace's own engine; empty for an ensemble.
        max_batch_size: requests may be joined along a batch dimension up to this size; 0: the tensors are passed on
            as they are.
        default_model_filename: file or folder of a version; empty for the backend's own name.
        decoupled: a request may have any number of responses.
        settings: of a model with the backend "headrace": settings of Headrace that differ for it.
    """

    name: str
    backend: str = ""
    platform: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble: tuple[EnsembleStep, ...] = ()
    instance_groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    warm_ups: tuple[WarmUp, ...] = ()
    response_cache: bool = False
    decoupled: bool = False
    default_model_filename: str = ""
    parameters: dict[str, str] = {}
    settings: dict[str, str] = {}
