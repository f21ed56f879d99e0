"""Model descriptions in a short form: model.toml, the fields of ModelConfig in TOML.

It may use every field of config.pbtxt under its own name. In place of long forms it takes short ones: `inputs` and
`outputs`, types without `TYPE_`, kinds without `KIND_`, `version_policy = "all"`, plain values of parameters,
`response_cache = true`, `decoupled = true`, `[[steps]]` of an ensemble, `[settings]` for the backend "headrace".
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

from shared.errors import ConfigError
from shared.repository.backends import HEADRACE
from shared.repository.model_config import MAX_PROBLEM_CHARS, check_text, config_from_dict
from shared.repository.model_config_pb2 import ModelConfig

Table = dict[str, Any]


def parse_model_toml(text: str, file: str) -> ModelConfig:
    """Return the message. Raises ConfigError that names the file, and the line or the field at fault."""
    check_text(text, file)
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {str(error)[:MAX_PROBLEM_CHARS]}", param=file) from error
    return config_from_dict(_in_full(table, file), file)


def _in_full(table: Table, file: str) -> Table:
    """Return the table with the long forms of its fields."""
    if "settings" in table and table.get("backend", HEADRACE) != HEADRACE:
        raise ConfigError(
            f"{file}: settings needs backend {HEADRACE}; other backends have parameters", param="settings"
        )
    full: Table = {}
    for name, value in table.items():
        field, convert = _SHORT.get(name, (name, lambda value: value))
        if field in full:
            raise ConfigError(f"{file}: {name} gives {field} a second time", param=name)
        full[field] = convert(value)
    return full


def _each(convert: Callable[[Table], Table]) -> Callable[[Any], Any]:
    """Return a function that converts each table of an array; what is no table is left to the schema to refuse."""

    def convert_all(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [convert(each) if isinstance(each, dict) else each for each in value]

    return convert_all


def _tensor(table: Table) -> Table:
    full = dict(table)
    for name in ("type", "datatype"):
        if name in full:
            full["data_type"] = full.pop(name)
    if "data_type" in full:
        full["data_type"] = _type(full["data_type"])
    if isinstance(full.get("reshape"), list):
        full["reshape"] = {"shape": full["reshape"]}
    return full


def _type(value: Any) -> Any:
    if not isinstance(value, str) or value.startswith("TYPE_"):
        return value
    return "TYPE_STRING" if value == "BYTES" else f"TYPE_{value}"


def _group(table: Table) -> Table:
    kind = table.get("kind")
    if not isinstance(kind, str) or kind.startswith("KIND_"):
        return table
    return {**table, "kind": f"KIND_{kind}"}


def _warm_up(table: Table) -> Table:
    inputs = table.get("inputs")
    if not isinstance(inputs, dict):
        return table
    return {
        **table,
        "inputs": {name: _tensor(each) if isinstance(each, dict) else each for name, each in inputs.items()},
    }


def _texts(value: Any) -> Any:
    """Return parameters in their long form; a value that is no text is written as TOML writes it."""
    if not isinstance(value, dict):
        return value
    return {name: each if isinstance(each, dict) else {"string_value": _text(each)} for name, each in value.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _within(name: str) -> Callable[[Any], Any]:
    """Return a function that puts a short form's plain value into a message's field."""
    return lambda value: value if isinstance(value, dict) else {name: value}


def _version_policy(value: Any) -> Any:
    if value == "all":
        return {"all": {}}
    if not isinstance(value, dict):
        return value
    latest, specific = value.get("latest"), value.get("specific")
    short = {"latest": {"num_versions": latest}} if isinstance(latest, int) else {}
    return value | short | ({"specific": {"versions": specific}} if isinstance(specific, list) else {})


_SHORT: dict[str, tuple[str, Callable[[Any], Any]]] = {  # by the name in TOML: the field, and how its value is read
    **dict.fromkeys(("input", "inputs"), ("input", _each(_tensor))),
    **dict.fromkeys(("output", "outputs"), ("output", _each(_tensor))),
    **dict.fromkeys(("parameters", "settings"), ("parameters", _texts)),
    "instance_group": ("instance_group", _each(_group)),
    "model_warmup": ("model_warmup", _each(_warm_up)),
    "version_policy": ("version_policy", _version_policy),
    "response_cache": ("response_cache", _within("enable")),
    "decoupled": ("model_transaction_policy", _within("decoupled")),
    "steps": ("ensemble_scheduling", _within("step")),
}
