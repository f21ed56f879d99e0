"""Options, consoles and the API client that several commands share."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headrace.terminal import Terminal
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.client import HeadraceClient

DEFAULT_URL = "http://127.0.0.1:8000"
SHORT_RETRY_S = 5.0  # for how long a command tries to reach the API
MAX_CHARS = 10_000_000  # of a text that a command reads
STREAM_RETRY_S = 60.0  # the same for a command that follows an answer

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: ./headrace.toml if it exists.")
]
AccountsDir = Annotated[
    Path | None, typer.Option(help="Folder of the accounts database, if database_url is not set.")
]
RedisUrl = Annotated[str | None, typer.Option(help="URL of Redis or Valkey.")]
Model = Annotated[str | None, typer.Option(help="Folder, GGUF file, Hugging Face id, smollm2 or all-minilm-l6-v2.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[
    str, typer.Option(envvar="HEADRACE_URL", help="Address of the API; separate several replicas by commas.")
]
AdminUrl = Annotated[str, typer.Option("--url", help="Address of the admin port; see admin_port.")]
ApiKey = Annotated[str | None, typer.Option(envvar="HEADRACE_API_KEY", help="API key, if the API requires one.")]

stderr = Terminal(stderr=True)


def read_text(path: Path, param: str) -> str:
    """Return the text of a file, or of standard input for -.

    Raises ConfigError if it cannot be read, is not UTF-8, or has more than MAX_CHARS.
    """
    is_stdin = str(path) == "-"
    name = "standard input" if is_stdin else path
    try:  # strictly, while a locale may let sys.stdin keep wrong bytes as surrogates
        with ExitStack() as stack:
            source = sys.stdin.buffer if is_stdin else stack.enter_context(path.open("rb"))
            reader = TextIOWrapper(source, encoding="utf-8")
            stack.callback(reader.detach)  # it would close standard input
            text = reader.read(MAX_CHARS + 1)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}", param=param) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not text in UTF-8", param=param) from error
    if len(text) > MAX_CHARS:
        raise ConfigError(f"the text must have at most {MAX_CHARS} characters", param=param)
    return text


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, without buffering; null for a number that JSON does not have."""
    print(json.dumps(_finite(value), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def plain_table(*columns: str) -> Table:
    """Return a table without lines."""
    return Table(*columns, box=None, padding=(0, 2, 0, 0))


def comma_separated(text: str) -> list[str]:
    """Return the non-empty parts of a list such as `a, b`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def first_model(client: HeadraceClient) -> str:
    """Return the first served model that generates text. Raises HeadraceError if no such model is served."""
    for model in client.models():
        if model.get("task") in ("generate", None):
            name: str = model["id"]
            return name
    raise HeadraceError("no model is served; check that a worker is running")


def client_at(url: str, api_key: str | None, retry_seconds: float = SHORT_RETRY_S) -> HeadraceClient:
    """Return the client for `--url` and `--api-key`. Raises ConfigError."""
    from headrace.client import HeadraceClient

    return HeadraceClient(url.split(","), api_key=api_key, patience=retry_seconds)
