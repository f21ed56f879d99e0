"""From a ModelConfig message to the description of a model. What the message alone contradicts is refused here."""

from __future__ import annotations

from typing import Any, cast

from shared.errors import ConfigError
from shared.protocol import DataType
from shared.repository import model_config_pb2 as pb
from shared.repository.backends import ENSEMBLE, HEADRACE, resolve_backend
from shared.repository.spec import (
    DynamicBatching,
    EnsembleStep,
    InstanceGroup,
    ModelSpec,
    QueuePolicy,
    SequenceBatching,
    SequenceControl,
    SequenceState,
    TensorSpec,
    VersionPolicy,
    WarmUp,
    WarmUpInput,
)

DEFAULT_IDLE_MICROSECONDS = SequenceBatching().max_sequence_idle_microseconds
NEWEST_VERSION = -1


def read_spec(config: pb.ModelConfig, name: str) -> ModelSpec:
    """Return the description of the model `name`. Raises ConfigError with the field's path as `param`."""
    backend, platform = resolve_backend(config.backend, _platform(config))
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    return ModelSpec(
        name=name,
        backend=backend,
        platform=platform,
        max_batch_size=config.max_batch_size,
        inputs=tuple(_input(tensor, f"input[{i}]") for i, tensor in enumerate(config.input)),
        outputs=tuple(_output(tensor, f"output[{i}]") for i, tensor in enumerate(config.output)),
        version_policy=_version_policy(config.version_policy),
        dynamic_batching=_dynamic(config.dynamic_batching) if config.HasField("dynamic_batching") else None,
        sequence_batching=_sequence(config.sequence_batching) if config.HasField("sequence_batching") else None,
        ensemble=tuple(_step(step) for step in config.ensemble_scheduling.step),
        instance_groups=tuple(_group(group) for group in config.instance_group) or (InstanceGroup(),),
        warm_ups=tuple(_warm_up(warm_up, f"model_warmup[{i}]") for i, warm_up in enumerate(config.model_warmup)),
        response_cache=config.response_cache.enable,
        decoupled=config.model_transaction_policy.decoupled,
        default_model_filename=config.default_model_filename,
        parameters={} if backend == HEADRACE else parameters,
        settings=parameters if backend == HEADRACE else {},
    )


def _platform(config: pb.ModelConfig) -> str:
    """Return the platform; ensemble scheduling implies its own."""
    if not config.HasField("ensemble_scheduling"):
        return config.platform
    if config.backend or config.platform not in ("", ENSEMBLE):
        raise ConfigError("ensemble_scheduling needs platform ensemble and no backend", param="ensemble_scheduling")
    if not config.ensemble_scheduling.step:
        raise ConfigError("ensemble_scheduling.step must have an entry", param="ensemble_scheduling.step")
    if config.instance_group:
        raise ConfigError("instance_group must be absent: an ensemble has no instances", param="instance_group")
    return ENSEMBLE


def _datatype(number: int, path: str) -> DataType:
    if number == pb.TYPE_INVALID:
        raise ConfigError(f"{path}.data_type must be set to a type such as TYPE_FP32", param=f"{path}.data_type")
    name = pb.DataType.Name(cast("pb.DataType", number))
    return cast("DataType", "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_"))


def _input(tensor: pb.ModelInput, path: str) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=_datatype(tensor.data_type, path),
        dims=tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        optional=tensor.optional,
        allow_ragged_batch=tensor.allow_ragged_batch,
    )


def _output(tensor: pb.ModelOutput, path: str) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=_datatype(tensor.data_type, path),
        dims=tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        label_filename=tensor.label_filename,
    )


def _version_policy(policy: pb.ModelVersionPolicy) -> VersionPolicy:
    match policy.WhichOneof("policy_choice"):
        case None:
            return VersionPolicy()
        case "latest":
            return VersionPolicy(latest=policy.latest.num_versions)
        case "specific" if not policy.specific.versions:
            path = "version_policy.specific.versions"
            raise ConfigError(f"{path} must have an entry", param=path)
    return VersionPolicy(latest=None, specific=tuple(policy.specific.versions))


def _dynamic(batching: pb.ModelDynamicBatching) -> DynamicBatching:
    return DynamicBatching(
        preferred_batch_size=tuple(batching.preferred_batch_size),
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=_queue_policy(batching.default_queue_policy),
        priority_queue_policy={
            level: _queue_policy(policy) for level, policy in sorted(batching.priority_queue_policy.items())
        },
    )


def _queue_policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_action="DELAY" if policy.timeout_action == pb.ModelQueuePolicy.DELAY else "REJECT",
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _sequence(batching: pb.ModelSequenceBatching) -> SequenceBatching:
    oldest = batching.HasField("oldest")
    strategy = batching.oldest if oldest else batching.direct
    return SequenceBatching(
        strategy="oldest" if oldest else "direct",
        max_sequence_idle_microseconds=batching.max_sequence_idle_microseconds or DEFAULT_IDLE_MICROSECONDS,
        control_input=tuple(
            _control(control, tensor.name, f"sequence_batching.control_input[{i}].control[{j}]")
            for i, tensor in enumerate(batching.control_input)
            for j, control in enumerate(tensor.control)
        ),
        state=tuple(
            SequenceState(
                input_name=state.input_name,
                output_name=state.output_name,
                datatype=_datatype(state.data_type, f"sequence_batching.state[{i}]"),
                dims=tuple(state.dims),
            )
            for i, state in enumerate(batching.state)
        ),
        max_candidate_sequences=batching.oldest.max_candidate_sequences,
        preferred_batch_size=tuple(batching.oldest.preferred_batch_size),
        max_queue_delay_microseconds=strategy.max_queue_delay_microseconds,
        minimum_slot_utilization=batching.direct.minimum_slot_utilization,
    )


_CONTROL_VALUES: tuple[tuple[str, DataType], ...] = (
    ("int32_false_true", "INT32"),
    ("fp32_false_true", "FP32"),
    ("bool_false_true", "BOOL"),
)


def _control(control: pb.ModelSequenceBatching.Control, name: str, path: str) -> SequenceControl:
    kind = cast("Any", pb.ModelSequenceBatching.Control.Kind.Name(control.kind))
    given = [(datatype, getattr(control, field)) for field, datatype in _CONTROL_VALUES if getattr(control, field)]
    if kind == "CONTROL_SEQUENCE_CORRID":
        if given:
            raise ConfigError(f"{path} must have a data_type and no values for false and true", param=path)
        return SequenceControl(name=name, kind=kind, datatype=_datatype(control.data_type, path))
    if len(given) != 1 or len(given[0][1]) != 2:
        fields = ", ".join(field for field, _ in _CONTROL_VALUES)
        raise ConfigError(f"{path} must have two values in one of {fields}", param=path)
    [(datatype, (false, true))] = given
    return SequenceControl(name=name, kind=kind, datatype=datatype, false_true=(float(false), float(true)))


def _step(step: pb.ModelEnsembling.Step) -> EnsembleStep:
    return EnsembleStep(
        model_name=step.model_name,
        model_version=step.model_version or NEWEST_VERSION,
        input_map=dict(step.input_map),
        output_map=dict(step.output_map),
    )


def _group(group: pb.ModelInstanceGroup) -> InstanceGroup:
    return InstanceGroup(
        count=group.count or 1,
        kind=cast("Any", pb.ModelInstanceGroup.Kind.Name(group.kind)),
        gpus=tuple(group.gpus),
    )


def _warm_up(warm_up: pb.ModelWarmup, path: str) -> WarmUp:
    return WarmUp(
        name=warm_up.name,
        batch_size=warm_up.batch_size,
        count=warm_up.count or 1,
        inputs={
            name: WarmUpInput(
                datatype=_datatype(tensor.data_type, f"{path}.inputs[{name}]"),
                dims=tuple(tensor.dims),
                source=cast("Any", tensor.WhichOneof("input_data_type")) or "zero_data",
                file=tensor.input_data_file,
            )
            for name, tensor in sorted(warm_up.inputs.items())
        },
    )
