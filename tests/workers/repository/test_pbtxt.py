"""Tests of config.pbtxt."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.repository.model_config import MAX_CONFIG_CHARS
from workers.repository.pbtxt import parse_pbtxt

FILE = "m/config.pbtxt"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n\ninptu: 1", 'm/config.pbtxt, line 3: ModelConfig has no field named "inptu".'),
        ("input {\n  title: 1\n}", 'm/config.pbtxt, line 2: ModelInput has no field named "title".'),
        ('max_batch_size: "x"', "m/config.pbtxt, line 1, field max_batch_size: Could"),
        ('input {\n  dims: [ 1,\n "x" ] }', "m/config.pbtxt, line 3, field dims: Could"),
        ("input { data_type: FP32 }", "m/config.pbtxt, line 1, field data_type: DataType has no value named FP32."),
        (
            "max_batch_size: 99999999999",
            "m/config.pbtxt, line 1, field max_batch_size: Value out of range",
        ),
        ("input {", 'm/config.pbtxt, line 1: Expected "}".'),
        (
            "max_batch_size: 1\nmax_batch_size: 2",
            'm/config.pbtxt, line 2: ModelConfig should not have multiple "max_batch_size" fields.',
        ),
    ],
)
def test_error_names_file_line_and_field(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_pbtxt(text, FILE)
    assert raised.value.message.startswith(problem)


def test_nesting_is_bounded() -> None:
    text = 'parameters { key: "x" value {' * 100_000
    with pytest.raises(ConfigError, match="line 1"):
        parse_pbtxt(text[:MAX_CONFIG_CHARS], FILE)


def test_size_is_bounded() -> None:
    with pytest.raises(ConfigError, match="must have at most"):
        parse_pbtxt(" " * (MAX_CONFIG_CHARS + 1), FILE)
