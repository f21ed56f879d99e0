"""The checks of a model's description that need nothing else: whether it contradicts itself.

Each raises ConfigError with the field's path, as config.pbtxt names it, as `param`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import PurePosixPath

from shared.errors import ConfigError
from shared.models.names import MODEL_NAME
from shared.repository.spec import DynamicBatching, ModelSpec, SequenceBatching, TensorSpec, WarmUp

MAX_NAME_CHARS = 256
MAX_INSTANCES = 1024  # of a group; each is a thread or a process
ANY_SIZE = -1


def check_spec(spec: ModelSpec) -> None:
    """Raise ConfigError for the first field that contradicts another, or is out of range."""
    if not MODEL_NAME.fullmatch(spec.name):
        raise _error("name", f"must match {MODEL_NAME.pattern}, got {spec.name[:200]!r}")
    _check_minimum("max_batch_size", spec.max_batch_size, 0)
    _check_tensors("input", spec.inputs)
    _check_tensors("output", spec.outputs)
    _check_versions(spec)
    check_file_name("default_model_filename", spec.default_model_filename)
    _check_groups(spec)
    if spec.dynamic_batching is not None:
        _check_dynamic(spec.dynamic_batching, spec.max_batch_size)
    if spec.sequence_batching is not None:
        _check_sequence(spec.sequence_batching, spec.max_batch_size)
    if spec.ensemble:
        _check_ensemble(spec)
    for i, warm_up in enumerate(spec.warm_ups):
        _check_warm_up(f"model_warmup[{i}]", warm_up, spec)
    if spec.response_cache and (spec.decoupled or spec.sequence_batching is not None):
        kind = "decoupled" if spec.decoupled else "sequence_batching"
        raise _error("response_cache.enable", f"must be false: responses of a model with {kind} cannot be repeated")


def check_file_name(path: str, name: str) -> None:
    """Raise ConfigError if the name of a file could lead out of its folder; empty is allowed."""
    parts = PurePosixPath(name).parts
    if "\\" in name or "\0" in name or ".." in parts or name.startswith("/"):
        raise _error(path, f"must be a relative path without '..', got {name[:200]!r}")


def _error(path: str, problem: str) -> ConfigError:
    return ConfigError(f"{path} {problem}", param=path)


def _check_minimum(path: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise _error(path, f"must be at least {minimum}, got {value}")


def _check_names(path: str, names: Iterable[str]) -> None:
    """Raise ConfigError if a name is empty, too long or used twice."""
    for i, (name, count) in enumerate(Counter(names).items()):
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise _error(f"{path}[{i}].name", f"must have between 1 and {MAX_NAME_CHARS} characters")
        if count > 1:
            raise _error(f"{path}.name", f"must be unique, got {name!r} {count} times")


def _check_tensors(path: str, tensors: Sequence[TensorSpec]) -> None:
    _check_names(path, (tensor.name for tensor in tensors))
    for i, tensor in enumerate(tensors):
        _check_dims(f"{path}[{i}].dims", tensor.dims)
        if tensor.reshape is not None:
            _check_reshape(f"{path}[{i}].reshape.shape", tensor.dims, tensor.reshape)
        check_file_name(f"{path}[{i}].label_filename", tensor.label_filename)


def _check_dims(path: str, dims: tuple[int, ...]) -> None:
    if wrong := [size for size in dims if size < 1 and size != ANY_SIZE]:
        raise _error(path, f"must have sizes of at least 1, or {ANY_SIZE} for any size, got {wrong[0]}")


def _check_reshape(path: str, dims: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless both shapes always have the same number of items."""
    _check_dims(path, shape)
    fixed, free = _items(dims), dims.count(ANY_SIZE)
    if _items(shape) != fixed or shape.count(ANY_SIZE) != free:
        raise _error(path, f"must have as many items as dims: {list(dims)} and {list(shape)} differ")


def _items(dims: tuple[int, ...]) -> int:
    return prod(size for size in dims if size != ANY_SIZE)


def _check_versions(spec: ModelSpec) -> None:
    if spec.version_policy.latest is not None:
        _check_minimum("version_policy.latest.num_versions", spec.version_policy.latest, 1)
    for version in spec.version_policy.specific:
        _check_minimum("version_policy.specific.versions", version, 1)


def _check_groups(spec: ModelSpec) -> None:
    for i, group in enumerate(spec.instance_groups):
        path = f"instance_group[{i}]"
        if not 1 <= group.count <= MAX_INSTANCES:
            raise _error(f"{path}.count", f"must be between 1 and {MAX_INSTANCES}, got {group.count}")
        if group.gpus and group.kind in ("KIND_CPU", "KIND_MODEL"):
            raise _error(f"{path}.gpus", f"must be empty for {group.kind}")
        if any(gpu < 0 for gpu in group.gpus):
            raise _error(f"{path}.gpus", "must be numbers of GPUs from 0")


def _check_preferred(path: str, sizes: tuple[int, ...], max_batch_size: int) -> None:
    for size in sizes:
        if not 1 <= size <= max_batch_size:
            raise _error(path, f"must be between 1 and max_batch_size ({max_batch_size}), got {size}")


def _check_dynamic(batching: DynamicBatching, max_batch_size: int) -> None:
    path = "dynamic_batching"
    _check_preferred(f"{path}.preferred_batch_size", batching.preferred_batch_size, max_batch_size)
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels == 0 and (default or batching.priority_queue_policy):
        field = "default_priority_level" if default else "priority_queue_policy"
        raise _error(f"{path}.{field}", "must be absent, since priority_levels is 0")
    if levels and not 1 <= default <= levels:
        raise _error(f"{path}.default_priority_level", f"must be between 1 and {levels}, got {default}")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise _error(f"{path}.priority_queue_policy", f"must have keys between 1 and {levels}, got {level}")


def _check_sequence(batching: SequenceBatching, max_batch_size: int) -> None:
    path = "sequence_batching"
    _check_preferred(f"{path}.oldest.preferred_batch_size", batching.preferred_batch_size, max_batch_size)
    _check_minimum(f"{path}.oldest.max_candidate_sequences", batching.max_candidate_sequences, 0)
    if not 0 <= batching.minimum_slot_utilization <= 1:
        value = batching.minimum_slot_utilization
        raise _error(f"{path}.direct.minimum_slot_utilization", f"must be between 0 and 1, got {value}")
    for kind, count in Counter(control.kind for control in batching.control_input).items():
        if count > 1:
            raise _error(f"{path}.control_input", f"must have {kind} at most once, got {count}")
    if not all(control.name for control in batching.control_input):
        raise _error(f"{path}.control_input", "must have names")
    for i, state in enumerate(batching.state):
        if not state.input_name or not state.output_name:
            raise _error(f"{path}.state[{i}]", "must have input_name and output_name")
        _check_dims(f"{path}.state[{i}].dims", state.dims)
    for field in ("input_name", "output_name"):
        if len({getattr(state, field) for state in batching.state}) < len(batching.state):
            raise _error(f"{path}.state", f"must have a different {field} in each entry")


def _check_ensemble(spec: ModelSpec) -> None:
    """Raise ConfigError unless each step can run, in some order, and the outputs are made once each."""
    path = "ensemble_scheduling.step"
    if not spec.inputs or not spec.outputs:
        raise _error("output" if spec.inputs else "input", "must have an entry, since the model is an ensemble")
    made = Counter(tensor.name for tensor in spec.inputs)
    for i, step in enumerate(spec.ensemble):
        if not MODEL_NAME.fullmatch(step.model_name) or step.model_name == spec.name:
            raise _error(f"{path}[{i}].model_name", f"must name another model, got {step.model_name[:200]!r}")
        if step.model_version < 1 and step.model_version != -1:
            raise _error(f"{path}[{i}].model_version", f"must be -1 or at least 1, got {step.model_version}")
        if not step.input_map or not step.output_map:
            raise _error(f"{path}[{i}]", "must have an input_map and an output_map")
        made.update(step.output_map.values())
    if twice := [name for name, count in made.items() if count > 1]:
        raise _error(path, f"must make each tensor once, got {twice[0]!r} {made[twice[0]]} times")
    _check_order(spec, path)
    if missing := [tensor.name for tensor in spec.outputs if tensor.name not in made]:
        raise _error("output", f"must be made by a step, got {missing[0]!r}")


def _check_order(spec: ModelSpec, path: str) -> None:
    known = {tensor.name for tensor in spec.inputs}
    waiting = list(enumerate(spec.ensemble))
    while ready := [(i, step) for i, step in waiting if known.issuperset(step.input_map.values())]:
        known.update(name for _, step in ready for name in step.output_map.values())
        waiting = [(i, step) for i, step in waiting if not known.issuperset(step.output_map.values())]
    if waiting:
        i, step = waiting[0]
        lacking = sorted(set(step.input_map.values()) - known)
        raise _error(f"{path}[{i}].input_map", f"needs {lacking[0]!r}, which no input and no step before it makes")


def _check_warm_up(path: str, warm_up: WarmUp, spec: ModelSpec) -> None:
    if not 0 <= warm_up.batch_size <= max(spec.max_batch_size, 1):
        raise _error(f"{path}.batch_size", f"must be at most max_batch_size ({spec.max_batch_size})")
    known = {tensor.name for tensor in spec.inputs}
    for name, tensor in warm_up.inputs.items():
        if known and name not in known:
            raise _error(f"{path}.inputs", f"must be inputs of the model, got {name[:200]!r}")
        if any(size < 1 for size in tensor.dims):
            raise _error(f"{path}.inputs[{name}].dims", "must have sizes of at least 1")
        if tensor.source == "input_data_file" and not tensor.file:
            raise _error(f"{path}.inputs[{name}].input_data_file", "must name a file")
        check_file_name(f"{path}.inputs[{name}].input_data_file", tensor.file)
