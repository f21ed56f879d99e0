"""Model descriptions in Triton's form: config.pbtxt, protobuf's text format."""

from __future__ import annotations

import re

from google.protobuf import text_format

from shared.errors import ConfigError
from shared.repository.model_config import MAX_CONFIG_DEPTH, MAX_PROBLEM_CHARS, check_text
from shared.repository.model_config_pb2 import ModelConfig

# what protobuf says: its position, for a wrong value the rest of its line, and the problem
_PROBLEM = re.compile(r"(\d+:\d+ : )?('.*': )?(.*)", re.DOTALL)
_TYPE = re.compile(r"([Mm]essage|Enum) type \"headrace\.repository\.([\w.]+)\"")
_FIELD = re.compile(r"([A-Za-z_]\w*)\s*[:{<\[]")


def parse_pbtxt(text: str, file: str) -> ModelConfig:
    """Return the message. Raises ConfigError that names the file, the line and the field at fault."""
    check_text(text, file)
    config = ModelConfig()
    try:
        text_format.Parse(text, config, max_recursion_depth=MAX_CONFIG_DEPTH)
    except text_format.ParseError as error:
        raise ConfigError(_describe(error, text, file), param=file) from error
    except (ValueError, TypeError, RecursionError) as error:  # values that the parser passes on unchecked
        raise ConfigError(f"{file} cannot be parsed: {str(error)[:MAX_PROBLEM_CHARS]}", param=file) from error
    return config


def _describe(error: text_format.ParseError, text: str, file: str) -> str:
    """Return the error in the form `FILE, line N, field F: PROBLEM`; the field only if the problem is its value."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    found = _PROBLEM.fullmatch(str(error))
    assert found is not None  # it matches every text
    place = f"{file}, line {line}"
    if found[2] is not None and (field := _field_before(text, line, column)):
        place += f", field {field}"
    problem = _TYPE.sub(lambda match: match[2], found[3])
    return f"{place}: {problem[:MAX_PROBLEM_CHARS]}"


def _field_before(text: str, line: int, column: int) -> str | None:
    """Return the last name of a field before a position, which the value there belongs to."""
    lines = text.split("\n")
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]])
    fields = _FIELD.findall(before)
    return str(fields[-1]) if fields else None
