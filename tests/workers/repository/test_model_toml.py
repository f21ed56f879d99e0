"""Tests of model.toml."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from shared.errors import ConfigError
from shared.repository.model_config import MAX_CONFIG_CHARS, spec_from_config
from shared.repository.model_config_pb2 import ModelConfig
from tests.support.model_configs import TOML
from workers.repository.model_toml import parse_model_toml

FILE = "m/model.toml"
LONG = """
backend: "onnxruntime" max_batch_size: 8 version_policy { latest { num_versions: 2 } }
response_cache { enable: true }
input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }
output { name: "y" data_type: TYPE_STRING dims: 1 reshape { } }
dynamic_batching {
  preferred_batch_size: 4 priority_levels: 2 default_priority_level: 1
  priority_queue_policy { key: 1 value { max_queue_size: 3 timeout_action: DELAY } }
}
instance_group { count: 2 kind: KIND_CPU }
model_warmup {
  name: "zeros" inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3, 1 ] zero_data: true } }
}
parameters { key: "threads" value { string_value: "2" } }
parameters { key: "fast" value { string_value: "true" } }
"""


def test_short_forms_mean_the_long_ones() -> None:
    short = spec_from_config(parse_model_toml(TOML, FILE), "m")
    assert short == spec_from_config(text_format.Parse(LONG, ModelConfig()), "m")


def test_long_forms_are_accepted_as_they_are() -> None:
    config = parse_model_toml(
        """
        version_policy.specific.versions = [1, 3]
        response_cache.enable = true
        model_transaction_policy.decoupled = false
        input = [{name = "x", data_type = "TYPE_INT8", dims = [2], reshape = {shape = [1, 2]}}]
        parameters.a.string_value = "b"
        """,
        FILE,
    )
    assert list(config.version_policy.specific.versions) == [1, 3]
    assert list(config.input[0].reshape.shape) == [1, 2]
    assert config.parameters["a"].string_value == "b"


def test_settings_belong_to_the_backend_headrace() -> None:
    spec = spec_from_config(parse_model_toml('backend = "headrace"\nsettings = {max_model_len = 64}', FILE), "m")
    assert spec.settings == {"max_model_len": "64"}
    with pytest.raises(ConfigError, match="settings needs backend headrace"):
        parse_model_toml('backend = "onnx"\n[settings]\na = 1', FILE)


def test_steps_make_an_ensemble() -> None:
    config = parse_model_toml(
        '[[steps]]\nmodel_name = "a"\ninput_map = {i = "x"}\noutput_map = {o = "y"}\n[[inputs]]\nname = "x"', FILE
    )
    assert config.ensemble_scheduling.step[0].input_map == {"i": "x"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\na = = 1", "m/model.toml is not TOML: .*line 2"),
        ("a = " + "[" * 100_000, "m/model.toml is not TOML"),
        ("inptu = 1", 'm/model.toml: .*no field named "inptu"'),
        ('max_batch_size = "many"', "m/model.toml: .*max_batch_size"),
        ("inputs = 3", "m/model.toml: .*input"),
        ("inputs = [3]", "m/model.toml: .*input"),
        ('inputs = [{name = "x", type = "FP31"}]', "m/model.toml: .*TYPE_FP31"),
        ("inputs = []\ninput = []", "m/model.toml: input gives input a second time"),
        ("a = 2026-01-01", 'm/model.toml: .*no field named "a"'),
        ("name = 2026-01-01", "m/model.toml: .*name"),
        ("steps = true", "m/model.toml: .*step"),
        ('version_policy = "none"', "m/model.toml: .*version_policy"),
        (" " * (MAX_CONFIG_CHARS + 1), "m/model.toml must have at most"),
    ],
)
def test_error_names_the_file_and_the_field(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_model_toml(text, FILE)
