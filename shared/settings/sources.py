"""Sources of settings: flags override the environment, which overrides headrace.toml, which overrides defaults."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from shared.errors import ConfigError
from shared.settings.fields import Settings

CONFIG_FILE = "headrace.toml"
ENV_PREFIX = "HEADRACE_"
CLIENT_VARIABLES = ("HEADRACE_URL", "HEADRACE_API_KEY")  # read by the clients, not settings


@dataclass(frozen=True)
class Loaded:
    """Settings, and the origin of each value: flag, environment, file or default."""

    settings: Settings
    origin: dict[str, str]


def load(flags: dict[str, Any] | None = None, *, file: Path | None = None) -> Loaded:
    """Read and check all sources. A flag of None counts as not given.

    Args:
        flags: values from the command line, by field name.
        file: a settings file that must exist; default: `headrace.toml` in the current folder, if it exists.

    Raises:
        ConfigError: a file cannot be read, a name is unknown or a value is out of range; says which and where.
    """
    sources = {
        "default": {},
        "file": _from_file(file),
        "environment": _from_environment(),
        "flag": {name: value for name, value in (flags or {}).items() if value is not None},
    }
    values: dict[str, Any] = {}
    origin = dict.fromkeys(Settings.model_fields, "default")
    for source, found in sources.items():
        values |= found
        origin |= dict.fromkeys(found, source)
    try:
        return Loaded(Settings(**values), origin)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        where = origin.get(name.partition(".")[0], "settings")
        subject = f"{name} (from {where}): " if name else ""  # else settings contradict each other
        raise ConfigError(f"{subject}{first['msg'].removeprefix('Value error, ')}", param=name or None) from None


def _from_file(file: Path | None) -> dict[str, Any]:
    path = file or Path(CONFIG_FILE)
    if file is None and not path.exists():
        return {}
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def to_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables from which `load` reads equal settings, secrets included.

    Each setting has a variable. It is empty for None, so that it overrides an inherited one.
    """
    dumped = settings.model_dump(mode="json")
    return {_variable(name): _as_text(getattr(settings, name), dumped[name]) for name in dumped}


def _as_text(value: Any, dumped: Any) -> str:
    """Return the text of one value; `dumped` is its JSON form."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(dumped) if isinstance(dumped, dict | list) else str(value)


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}{name.upper()}"


def _from_environment() -> dict[str, Any]:
    known = {_variable(name): name for name in Settings.model_fields}
    found = {}
    for variable, value in os.environ.items():
        if not variable.startswith(ENV_PREFIX) or not value or variable in CLIENT_VARIABLES:
            continue
        if variable not in known:
            raise ConfigError(f"unknown setting {variable} in the environment")
        found[known[variable]] = value
    return found
