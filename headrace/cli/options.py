"""Options that several commands share, and the client that they talk through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import HeadraceClient

URL = "http://127.0.0.1:8000"
QUICK = 5.0  # seconds that a command tries to reach the API
STEADY = 60.0  # the same for one that follows an answer

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: ./headrace.toml if it exists.")
]
AccountsDir = Annotated[Path | None, typer.Option(help="Folder of the accounts' database, without `database_url`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[
    str, typer.Option(envvar="HEADRACE_URL", help="Address of the API; those of several replicas with commas.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="HEADRACE_API_KEY", help="Key of the API, where it asks for one.")
]


def first_model(client: HeadraceClient) -> str:
    """The first that answers in text. Raises HeadraceError."""
    for model in client.models():
        if model.get("task") != "embed":
            name: str = model["id"]
            return name
    raise HeadraceError("no model is served yet: is a worker running?")


def client_at(url: str, api_key: str | None, patience: float = QUICK) -> HeadraceClient:
    """The client for `--url` and `--api-key`. Raises ConfigError."""
    from headrace.client import HeadraceClient

    return HeadraceClient(url.split(","), api_key=api_key, patience=patience)
