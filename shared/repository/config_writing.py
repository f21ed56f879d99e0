"""From the description of a model to a ModelConfig message."""

from __future__ import annotations

from shared.protocol import DataType
from shared.repository import model_config_pb2 as pb
from shared.repository.spec import (
    DynamicBatching,
    ModelSpec,
    QueuePolicy,
    SequenceBatching,
    SequenceControl,
    TensorSpec,
    VersionPolicy,
    WarmUp,
)


def config_from_spec(spec: ModelSpec) -> pb.ModelConfig:
    """Return the message of a description."""
    parameters = spec.parameters | spec.settings
    config = pb.ModelConfig(
        name=spec.name,
        platform=spec.platform,
        backend=spec.backend,
        version_policy=_version_policy(spec.version_policy),
        max_batch_size=spec.max_batch_size,
        input=[_input(tensor) for tensor in spec.inputs],
        output=[_output(tensor) for tensor in spec.outputs],
        default_model_filename=spec.default_model_filename,
        parameters={key: pb.ModelParameter(string_value=value) for key, value in parameters.items()},
        model_warmup=[_warm_up(warm_up) for warm_up in spec.warm_ups],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=spec.decoupled),
        response_cache=pb.ModelResponseCache(enable=spec.response_cache),
    )
    _write_scheduling(spec, config)
    return config


def _write_scheduling(spec: ModelSpec, config: pb.ModelConfig) -> None:
    if spec.ensemble:
        for step in spec.ensemble:
            config.ensemble_scheduling.step.add(
                model_name=step.model_name,
                model_version=step.model_version,
                input_map=step.input_map,
                output_map=step.output_map,
            )
        return
    for i, group in enumerate(spec.instance_groups):
        name = f"{spec.name}_{i}"
        config.instance_group.add(name=name, kind=group.kind, count=group.count, gpus=group.gpus)
    if spec.sequence_batching is not None:
        config.sequence_batching.CopyFrom(_sequence(spec.sequence_batching))
    elif spec.dynamic_batching is not None:
        config.dynamic_batching.CopyFrom(_dynamic(spec.dynamic_batching))


def _datatype(datatype: DataType) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _reshape(tensor: TensorSpec) -> pb.ModelTensorReshape | None:
    return None if tensor.reshape is None else pb.ModelTensorReshape(shape=tensor.reshape)


def _input(tensor: TensorSpec) -> pb.ModelInput:
    return pb.ModelInput(
        name=tensor.name,
        data_type=_datatype(tensor.datatype),
        dims=tensor.dims,
        reshape=_reshape(tensor),
        allow_ragged_batch=tensor.allow_ragged_batch,
        optional=tensor.optional,
    )


def _output(tensor: TensorSpec) -> pb.ModelOutput:
    return pb.ModelOutput(
        name=tensor.name,
        data_type=_datatype(tensor.datatype),
        dims=tensor.dims,
        reshape=_reshape(tensor),
        label_filename=tensor.label_filename,
    )


def _version_policy(policy: VersionPolicy) -> pb.ModelVersionPolicy:
    if policy.specific:
        return pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=policy.specific))
    if policy.latest is None:
        return pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All())
    return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=policy.latest))


def _dynamic(batching: DynamicBatching) -> pb.ModelDynamicBatching:
    return pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_size,
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=_queue_policy(batching.default_queue_policy),
        priority_queue_policy={
            level: _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()
        },
    )


def _queue_policy(policy: QueuePolicy) -> pb.ModelQueuePolicy:
    return pb.ModelQueuePolicy(
        timeout_action=policy.timeout_action,
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _sequence(batching: SequenceBatching) -> pb.ModelSequenceBatching:
    config = pb.ModelSequenceBatching(max_sequence_idle_microseconds=batching.max_sequence_idle_microseconds)
    if batching.strategy == "oldest":
        config.oldest.max_candidate_sequences = batching.max_candidate_sequences
        config.oldest.preferred_batch_size.extend(batching.preferred_batch_size)
        config.oldest.max_queue_delay_microseconds = batching.max_queue_delay_microseconds
    else:
        config.direct.max_queue_delay_microseconds = batching.max_queue_delay_microseconds
        config.direct.minimum_slot_utilization = batching.minimum_slot_utilization
    inputs: dict[str, pb.ModelSequenceBatching.ControlInput] = {}
    for control in batching.control_input:
        if control.name not in inputs:
            inputs[control.name] = config.control_input.add(name=control.name)
        inputs[control.name].control.append(_control(control))
    for state in batching.state:
        config.state.add(
            input_name=state.input_name,
            output_name=state.output_name,
            data_type=_datatype(state.datatype),
            dims=state.dims,
        )
    return config


def _control(control: SequenceControl) -> pb.ModelSequenceBatching.Control:
    kind = control.kind
    if control.false_true is None:
        return pb.ModelSequenceBatching.Control(kind=kind, data_type=_datatype(control.datatype))
    false, true = control.false_true
    match control.datatype:
        case "FP32":
            return pb.ModelSequenceBatching.Control(kind=kind, fp32_false_true=[false, true])
        case "BOOL":
            return pb.ModelSequenceBatching.Control(kind=kind, bool_false_true=[bool(false), bool(true)])
    return pb.ModelSequenceBatching.Control(kind=kind, int32_false_true=[int(false), int(true)])


def _warm_up(warm_up: WarmUp) -> pb.ModelWarmup:
    config = pb.ModelWarmup(name=warm_up.name, batch_size=warm_up.batch_size, count=warm_up.count)
    for name, tensor in warm_up.inputs.items():
        data = pb.ModelWarmup.Input(data_type=_datatype(tensor.datatype), dims=tensor.dims)
        match tensor.source:
            case "zero_data":
                data.zero_data = True
            case "random_data":
                data.random_data = True
            case "input_data_file":
                data.input_data_file = tensor.file
        config.inputs[name].CopyFrom(data)
    return config
