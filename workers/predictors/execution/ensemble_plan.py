"""Check of an ensemble's description against its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shared.errors import ConfigError
from shared.repository.spec import EnsembleStep, ModelSpec, TensorSpec
from workers.predictors.tensors.shapes import VARIABLE

_Tensor = tuple[TensorSpec, tuple[int, ...]]  # and its dimensions, with that of the batch


def check_ensemble(spec: ModelSpec, models: Mapping[str, ModelSpec]) -> None:
    """Raise ConfigError, naming the step's model, if the steps cannot be executed.

    Args:
        models: the descriptions of the models of the steps, by name.
    """
    produced = {each.name: _full(each, spec) for each in spec.inputs}
    for step in spec.ensemble:
        model = _model(spec, step, models)
        for name, tensor in _outputs(spec, step, model):
            if name in produced:
                raise ConfigError(f"{_place(spec, step)}: tensor {name} is produced twice")
            produced[name] = tensor
    for step in spec.ensemble:
        _check_inputs(spec, step, models[step.model_name], produced)
    for output in spec.outputs:
        if output.name not in produced:
            raise ConfigError(f"ensemble {spec.name}: no step produces its output {output.name}")
        _check_equal(f"ensemble {spec.name}, output {output.name}", produced[output.name], _full(output, spec))
    _check_order(spec)


def _model(spec: ModelSpec, step: EnsembleStep, models: Mapping[str, ModelSpec]) -> ModelSpec:
    model = models.get(step.model_name)
    if model is None:
        raise ConfigError(f"{_place(spec, step)}: the model is not loaded")
    if model.decoupled:
        raise ConfigError(
            f"{_place(spec, step)}: the model is decoupled; an ensemble needs one response of each step"
        )
    return model


def _outputs(spec: ModelSpec, step: EnsembleStep, model: ModelSpec) -> Iterator[tuple[str, _Tensor]]:
    known = {each.name: each for each in model.outputs}
    for theirs, name in step.output_map.items():
        if theirs not in known:
            raise ConfigError(f"{_place(spec, step)}: the model has no output {theirs}")
        yield name, _full(known[theirs], model)


def _check_inputs(spec: ModelSpec, step: EnsembleStep, model: ModelSpec, produced: Mapping[str, _Tensor]) -> None:
    known = {each.name: each for each in model.inputs}
    for theirs, name in step.input_map.items():
        if theirs not in known:
            raise ConfigError(f"{_place(spec, step)}: the model has no input {theirs}")
        if name not in produced:
            raise ConfigError(f"{_place(spec, step)}: nothing produces tensor {name}")
        _check_equal(f"{_place(spec, step)}, input {theirs}", produced[name], _full(known[theirs], model))
    for each in model.inputs:
        if each.name not in step.input_map and not each.optional:
            raise ConfigError(f"{_place(spec, step)}: input {each.name} of the model is not mapped")


def _check_equal(place: str, found: _Tensor, expected: _Tensor) -> None:
    (given, given_dims), (wanted, wanted_dims) = found, expected
    if given.datatype != wanted.datatype:
        raise ConfigError(f"{place}: the datatype must be {wanted.datatype}, but {given.datatype} is produced")
    if len(given_dims) != len(wanted_dims) or any(
        VARIABLE not in (a, b) and a != b for a, b in zip(given_dims, wanted_dims, strict=True)
    ):
        raise ConfigError(f"{place}: the shape must be {[*wanted_dims]}, but {[*given_dims]} is produced")


def _check_order(spec: ModelSpec) -> None:
    """Raise ConfigError if steps wait for each other."""
    available = {each.name for each in spec.inputs}
    waiting = list(spec.ensemble)
    while waiting:
        ready = [step for step in waiting if available.issuperset(step.input_map.values())]
        if not ready:
            names = ", ".join(step.model_name for step in waiting)
            raise ConfigError(f"ensemble {spec.name}: the steps {names} wait for each other")
        waiting = [step for step in waiting if step not in ready]
        available.update(name for step in ready for name in step.output_map.values())


def _full(tensor: TensorSpec, model: ModelSpec) -> _Tensor:
    return tensor, (VARIABLE, *tensor.dims) if model.max_batch_size else tensor.dims


def _place(spec: ModelSpec, step: EnsembleStep) -> str:
    return f"ensemble {spec.name}, step {step.model_name}"
