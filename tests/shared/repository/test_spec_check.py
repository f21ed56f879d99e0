"""Tests of the contradictions in a model's description."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from shared.errors import ConfigError
from shared.repository import model_config_pb2 as pb
from shared.repository.model_config import spec_from_config

X = 'input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }'
Y = 'output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }'


def step(made: str, needed: str, model: str = "a") -> str:
    return (
        f'step {{ model_name: "{model}" input_map {{ key: "i" value: "{needed}" }} '
        f'output_map {{ key: "o" value: "{made}" }} }}'
    )


def ensemble(*steps: str) -> str:
    return f"{X} {Y} ensemble_scheduling {{ {' '.join(steps)} }}"


def dynamic(body: str) -> str:
    return f"dynamic_batching {{ {body} }}"


def warm_up(body: str) -> str:
    return f"model_warmup {{ inputs {{ key: 'x' value {{ data_type: TYPE_FP32 {body} }} }} }}"


def control(body: str) -> str:
    return f'sequence_batching {{ control_input {{ name: "c" control {{ {body} }} }} }}'


CONTRADICTIONS = {
    'backend: "dali"': "backend",
    'platform: "caffe2_netdef"': "platform",
    'backend: "python" platform: "onnxruntime_onnx"': "platform",
    "max_batch_size: -1": "max_batch_size",
    'input { name: "x" dims: [ 1 ] }': "input[0].data_type",
    'input { name: "x" data_type: TYPE_FP32 dims: [ 1, 0 ] }': "input[0].dims",
    "input { data_type: TYPE_FP32 dims: 1 }": "input[0].name",
    f"{Y} {Y}": "output.name",
    'output { name: "y" data_type: TYPE_FP32 dims: [ 6 ] reshape { shape: [ 4 ] } }': "output[0].reshape.shape",
    'input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] reshape { shape: [ 1 ] } }': "input[0].reshape.shape",
    'output { name: "y" data_type: TYPE_FP32 dims: 1 label_filename: "../x" }': "output[0].label_filename",
    "version_policy { latest { num_versions: 0 } }": "version_policy.latest.num_versions",
    "version_policy { specific { } }": "version_policy.specific.versions",
    "version_policy { specific { versions: 0 } }": "version_policy.specific.versions",
    'default_model_filename: "/etc/passwd"': "default_model_filename",
    'default_model_filename: "a/../../b"': "default_model_filename",
    "instance_group { count: -1 }": "instance_group[0].count",
    "instance_group { count: 5000 }": "instance_group[0].count",
    "instance_group { kind: KIND_CPU gpus: 0 }": "instance_group[0].gpus",
    "instance_group { kind: KIND_GPU gpus: -1 }": "instance_group[0].gpus",
    "dynamic_batching { preferred_batch_size: 2 }": "dynamic_batching.preferred_batch_size",
    "dynamic_batching { default_priority_level: 1 }": "dynamic_batching.default_priority_level",
    "dynamic_batching { priority_queue_policy { key: 1 value { } } }": "dynamic_batching.priority_queue_policy",
    "dynamic_batching { priority_levels: 2 }": "dynamic_batching.default_priority_level",
    dynamic("priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }"): (
        "dynamic_batching.priority_queue_policy"
    ),
    "sequence_batching { oldest { preferred_batch_size: 2 } }": "sequence_batching.oldest.preferred_batch_size",
    "sequence_batching { oldest { max_candidate_sequences: -1 } }": (
        "sequence_batching.oldest.max_candidate_sequences"
    ),
    "sequence_batching { direct { minimum_slot_utilization: 1.5 } }": (
        "sequence_batching.direct.minimum_slot_utilization"
    ),
    "sequence_batching { direct { minimum_slot_utilization: nan } }": (
        "sequence_batching.direct.minimum_slot_utilization"
    ),
    control("kind: CONTROL_SEQUENCE_END"): "sequence_batching.control_input[0].control[0]",
    control("kind: CONTROL_SEQUENCE_END int32_false_true: [ 1 ]"): "sequence_batching.control_input[0].control[0]",
    control("kind: CONTROL_SEQUENCE_CORRID"): "sequence_batching.control_input[0].control[0].data_type",
    control(
        "int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]"
    ): "sequence_batching.control_input[0].control[0]",
    control("int32_false_true: [ 0, 1 ] } control { int32_false_true: [ 0, 1 ]"): "sequence_batching.control_input",
    'sequence_batching { state { input_name: "i" data_type: TYPE_FP32 } }': "sequence_batching.state[0]",
    "ensemble_scheduling { }": "ensemble_scheduling.step",
    f'backend: "python" {ensemble(step("y", "x"))}': "ensemble_scheduling",
    f"instance_group {{ }} {ensemble(step('y', 'x'))}": "instance_group",
    f"ensemble_scheduling {{ {step('y', 'x')} }}": "input",
    ensemble(step("y", "x", "m")): "ensemble_scheduling.step[0].model_name",
    ensemble(step("y", "x", "../a")): "ensemble_scheduling.step[0].model_name",
    ensemble('step { model_name: "a" }'): "ensemble_scheduling.step[0]",
    ensemble(step("y", "x"), step("y", "x")): "ensemble_scheduling.step",
    ensemble(step("t", "x")): "output",
    ensemble(step("y", "t"), step("t", "y")): "ensemble_scheduling.step[0].input_map",
    "model_warmup { batch_size: 2 }": "model_warmup[0].batch_size",
    f"{X} model_warmup {{ inputs {{ key: 'z' value {{ data_type: TYPE_FP32 }} }} }}": "model_warmup[0].inputs",
    warm_up("dims: -1"): "model_warmup[0].inputs[x].dims",
    warm_up("input_data_file: '../x'"): "model_warmup[0].inputs[x].input_data_file",
    warm_up("input_data_file: ''"): "model_warmup[0].inputs[x].input_data_file",
    "response_cache { enable: true } model_transaction_policy { decoupled: true }": "response_cache.enable",
    "response_cache { enable: true } sequence_batching { }": "response_cache.enable",
}


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_contradiction_is_refused_with_its_path(text: str) -> None:
    config = text_format.Parse(text, pb.ModelConfig())
    with pytest.raises(ConfigError) as raised:
        spec_from_config(config, "m")
    assert raised.value.param == CONTRADICTIONS[text]
    assert raised.value.message.startswith(CONTRADICTIONS[text]) or CONTRADICTIONS[text] in raised.value.message


@pytest.mark.parametrize("name", ["..", "../m", "/m", "", "a\nb"])
def test_names_that_are_no_names_of_models_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name must match"):
        spec_from_config(pb.ModelConfig(), name)
