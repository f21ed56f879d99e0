"""Conversion of a model's description: between ModelSpec, the message ModelConfig, and its JSON form.

The message of a ModelSpec is made by `config_writing.config_from_spec`.

It imports protobuf: a process that serves no repository must not import it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from shared.errors import ConfigError
from shared.repository import model_config_pb2 as pb
from shared.repository.config_reading import read_spec
from shared.repository.spec import ModelSpec
from shared.repository.spec_check import check_spec

_IGNORED: Any = pb.ignored  # types-protobuf has another class of extensions than the generated module
MAX_CONFIG_CHARS = 1024 * 1024
MAX_PROBLEM_CHARS = 300
MAX_CONFIG_DEPTH = 32  # of messages in messages; the deepest that has a meaning is 6


def spec_from_config(config: pb.ModelConfig, name: str) -> ModelSpec:
    """Return the description of the model `name`.

    Raises ConfigError with the field's path as `param` if the message contradicts itself, or has another name.
    """
    if config.name and config.name != name:
        raise ConfigError(f"name must be {name} or absent, got {config.name[:200]!r}", param="name")
    _check_enums(config)
    spec = read_spec(config, name)
    check_spec(spec)
    return spec


def spec_from_json(text: str, name: str) -> tuple[ModelSpec, list[str]]:
    """Return the description in a ModelConfig as JSON, and the names of the fields in it that have no effect.

    Raises ConfigError that names the field at fault.
    """
    config = config_from_json(text)
    return spec_from_config(config, name), ignored_fields(config)


def check_text(text: str, source: str) -> None:
    """Raise ConfigError if a description is too long, or has lone surrogates, on which protobuf fails."""
    if len(text) > MAX_CONFIG_CHARS:
        raise ConfigError(
            f"{source} must have at most {MAX_CONFIG_CHARS} characters, got {len(text)}", param=source
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{source} must be text that UTF-8 can encode", param=source) from error


def config_from_json(text: str) -> pb.ModelConfig:
    """Parse a ModelConfig in JSON. Raises ConfigError that names the field at fault."""
    check_text(text, "config")
    try:
        found = json.loads(text)
        check_text(json.dumps(found, ensure_ascii=False), "config")  # it may escape what is no text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}", param="config") from error
    return config_from_dict(found, "config")


def config_from_dict(found: Any, source: str) -> pb.ModelConfig:
    """Return the message with the fields of `found`. Raises ConfigError that names `source` and the wrong field."""
    if not isinstance(found, dict):
        raise ConfigError(f"{source} must be an object", param=source)
    config = pb.ModelConfig()
    try:
        json_format.ParseDict(found, config, max_recursion_depth=MAX_CONFIG_DEPTH)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        problem = str(error).partition("\n")[0].replace(f"{pb.DESCRIPTOR.package}.", "")
        raise ConfigError(f"{source}: {problem[:MAX_PROBLEM_CHARS]}", param=source) from error
    return config


def config_to_dict(config: pb.ModelConfig) -> dict[str, Any]:
    """Return the form of `GET v2/models/M/config`: all fields, as config.pbtxt names them."""
    return json_format.MessageToDict(
        config,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        unquote_int64_if_possible=True,
    )


def config_to_json(config: pb.ModelConfig) -> str:
    """Return `config_to_dict` as text, which `config_from_json` reads."""
    return json.dumps(config_to_dict(config))


def ignored_fields(config: Message) -> list[str]:
    """Return the names of the fields that are set and have no effect, each once, in the order of their numbers."""
    return list(dict.fromkeys(_ignored_fields(config)))


def _ignored_fields(message: Message, path: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        if field.GetOptions().Extensions[_IGNORED]:
            yield path + field.name
        elif field.message_type is not None:
            for part in _messages(value):
                yield from _ignored_fields(part, f"{path}{field.name}.")


def _messages(value: Any) -> list[Message]:
    """Return the messages of a field's value: a message, several, or a map of messages or of scalars."""
    if isinstance(value, Message):
        return [value]
    values = value.values() if hasattr(value, "values") else value
    return [each for each in values if isinstance(each, Message)]


def _check_enums(message: Message, path: str = "") -> None:
    """Raise ConfigError for a number that an enum does not have: JSON and protobuf accept any."""
    for field, value in message.ListFields():
        if field.enum_type is not None and value not in field.enum_type.values_by_number:
            names = ", ".join(field.enum_type.values_by_name)
            raise ConfigError(
                f"{path}{field.name} must be one of {names}, got {value}", param=f"{path}{field.name}"
            )
        if field.message_type is not None:
            for part in _messages(value):
                _check_enums(part, f"{path}{field.name}.")
