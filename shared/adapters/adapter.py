"""A registered LoRA adapter, and the orders of the API to the workers of its base model."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.errors import InvalidRequest
from shared.models.names import MODEL_NAME
from shared.protocol import AdapterRef

MAX_ADAPTERS = 1_000  # registered, of all models
MAX_PATH_CHARS = 1_024
Refusal = Literal["invalid", "missing", "exists", "full"]


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that requests may name.

    Attributes:
        base: the model that it adapts.
        path: its folder, as it was registered.
        digest: of its contents.
        rank: the largest of its matrices.
        created: when it was registered, in seconds since the epoch.
        order: id of the order by which it was registered.
    """

    name: str
    base: str
    path: str
    digest: str
    rank: int
    created: int
    order: str = ""

    @property
    def ref(self) -> AdapterRef:
        return AdapterRef(self.name, self.path, self.digest)


class AdapterOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Order to the workers of `base`: one of them checks and registers an adapter, or all forget it.

    Attributes:
        replace: register it in place of one of the same name.
    """

    id: str
    action: Literal["load", "unload"]
    name: str
    base: str
    path: str = ""
    replace: bool = False


class AdapterResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcome of an order to load: no `error`, or why the adapter was not registered."""

    id: str
    error: str = ""
    refusal: Refusal | None = None


def check_adapter_name(name: str) -> None:
    """Raise InvalidRequest for a name that no adapter can have."""
    if not MODEL_NAME.fullmatch(name):
        raise InvalidRequest(f"lora_name must match {MODEL_NAME.pattern}", param="lora_name")


def check_adapter_path(path: str) -> None:
    """Raise InvalidRequest for a path that no worker takes; workers check whether it is in their folder."""
    if not 0 < len(path) <= MAX_PATH_CHARS or "\0" in path:
        raise InvalidRequest(
            f"lora_path must have 1 to {MAX_PATH_CHARS} characters, and no NUL character", param="lora_path"
        )
