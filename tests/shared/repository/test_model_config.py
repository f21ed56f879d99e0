"""Tests of a model's description as a message and as JSON."""

from __future__ import annotations

import json

import pytest
from google.protobuf import text_format

from shared.errors import ConfigError
from shared.repository import model_config_pb2 as pb
from shared.repository.config_writing import config_from_spec
from shared.repository.model_config import (
    MAX_CONFIG_CHARS,
    config_to_dict,
    config_to_json,
    ignored_fields,
    spec_from_config,
    spec_from_json,
)
from shared.repository.spec import ModelSpec, QueuePolicy, SequenceControl, VersionPolicy
from tests.support.model_configs import ALL, BATCHED, ENSEMBLE, GENERATING, SEQUENCE


def parse(text: str) -> ModelSpec:
    return spec_from_config(text_format.Parse(text, pb.ModelConfig()), "m")


@pytest.mark.parametrize("text", ALL)
def test_specification_survives_message_and_json(text: str) -> None:
    spec = parse(text)
    config = config_from_spec(spec)
    assert spec_from_config(config, "m") == spec
    assert spec_from_json(config_to_json(config), "m") == (spec, [])


def test_batched_model_is_read_field_by_field() -> None:
    spec = parse(BATCHED)
    [y] = spec.outputs
    assert (spec.backend, spec.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert (y.datatype, y.dims, y.reshape, y.label_filename) == ("BYTES", (1,), (), "labels.txt")
    assert spec.version_policy == VersionPolicy(latest=None, specific=(1, 4503599627370496))
    assert spec.dynamic_batching is not None
    assert spec.dynamic_batching.default_queue_policy == QueuePolicy(max_queue_size=7)
    assert spec.dynamic_batching.priority_queue_policy == {
        1: QueuePolicy(timeout_action="DELAY", default_timeout_microseconds=5, allow_timeout_override=True)
    }
    [group] = spec.instance_groups
    assert (group.count, group.kind, group.gpus) == (2, "KIND_GPU", (0, 1))
    assert spec.warm_ups[0].inputs["x"].source == "random_data"
    assert (spec.parameters, spec.settings) == ({"threads": "2"}, {})


def test_controls_of_sequences_keep_their_types() -> None:
    batching = parse(SEQUENCE).sequence_batching
    assert batching is not None
    assert (batching.strategy, batching.max_sequence_idle_microseconds) == ("oldest", 1_000_000)
    assert batching.control_input == (
        SequenceControl(name="start", kind="CONTROL_SEQUENCE_START", datatype="INT32", false_true=(0, 1)),
        SequenceControl(name="flags", kind="CONTROL_SEQUENCE_END", datatype="BOOL", false_true=(0, 1)),
        SequenceControl(name="flags", kind="CONTROL_SEQUENCE_READY", datatype="FP32", false_true=(0.5, 1)),
        SequenceControl(name="id", kind="CONTROL_SEQUENCE_CORRID", datatype="UINT64"),
    )


def test_ensemble_takes_the_newest_version_by_default() -> None:
    spec = parse(ENSEMBLE)
    assert (spec.backend, spec.platform) == ("", "ensemble")
    assert [step.model_version for step in spec.ensemble] == [3, -1]


def test_parameters_of_headrace_are_settings() -> None:
    spec = parse(GENERATING)
    assert (spec.parameters, spec.settings) == ({}, {"max_model_len": "2048"})


def test_json_has_all_fields_and_plain_integers() -> None:
    found = config_to_dict(config_from_spec(parse(BATCHED)))
    assert found["input"] == [
        {
            **{"name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [3, -1]},
            **{"is_shape_tensor": False, "allow_ragged_batch": False, "optional": False},
            "is_non_linear_format_io": False,
        }
    ]
    assert found["version_policy"] == {"specific": {"versions": [1, 4503599627370496]}}
    assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert found["instance_group"][0]["name"] == "m_0"
    assert found["metric_tags"] == {}
    json.dumps(found)


def test_wire_form_is_readable_by_field_numbers_of_triton() -> None:
    config = pb.ModelConfig.FromString(bytes.fromhex("0a016d 2008 8a0106707974686f6e c20102 0801".replace(" ", "")))
    assert (config.name, config.max_batch_size, config.backend, config.response_cache.enable) == (
        "m",
        8,
        "python",
        1,
    )


def test_fields_without_effect_are_named_once() -> None:
    config = text_format.Parse(
        """
        runtime: "x" metric_tags { key: "a" value: "b" }
        input { name: "a" format: FORMAT_NCHW } input { name: "b" format: FORMAT_NHWC }
        optimization { cuda { graphs: true } input_pinned_memory { enable: true } }
        instance_group { count: 1 passive: true rate_limiter { priority: 1 } }
        sequence_batching { oldest { preserve_ordering: true } state { initial_state { data_file: "f" } } }
        """,
        pb.ModelConfig(),
    )
    assert ignored_fields(config) == [
        "input.format",
        "instance_group.rate_limiter",
        "instance_group.passive",
        "metric_tags",
        "optimization.cuda",
        "optimization.input_pinned_memory",
        "sequence_batching.oldest.preserve_ordering",
        "sequence_batching.state.initial_state.data_file",
        "runtime",
    ]


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="name must be m or absent, got 'other'"):
        parse('name: "other"')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "config is not JSON"),
        ("[]", "config must be an object"),
        ('{"inptu": []}', "inptu"),
        ('{"max_batch_size": "many"}', "max_batch_size"),
        ('{"input": [{"dims": [1e400]}]}', "dims"),
        ('{"\\ud800": 1}', "config must be text that UTF-8 can encode"),
        ('{"input": [{"name": "x", "data_type": 99}]}', r"input\.data_type must be one of TYPE_INVALID"),
        ("[" * 100_000, "config is not JSON"),
        (" " * (MAX_CONFIG_CHARS + 1), "config must have at most"),
    ],
)
def test_unusable_json_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        spec_from_json(text, "m")
