"""Messages between a worker and the process of a predictor. Arrays travel beside them.

The worker asks: `Start` once, then `Execute`; after each response of a stream, `Proceed`. The process answers each
with one message.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.protocol import Parameter
from shared.repository.spec import ModelSpec


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Load the model, or complete its description from the model's files."""

    goal: Literal["load", "complete"]
    spec: ModelSpec
    folder: str
    threads: int | None
    memory_limit: int | None


class Execute(msgspec.Struct, frozen=True, kw_only=True, tag="execute"):
    """Execute once on the arrays that follow."""

    outputs: tuple[str, ...]
    parameters: dict[str, Parameter]
    stream: bool


class Proceed(msgspec.Struct, frozen=True, tag="proceed"):
    """Send the next response of the stream, or end it."""

    more: bool


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The model is loaded, or its description is complete."""

    spec: ModelSpec
    memory_bytes: int


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """The outputs follow as arrays."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The stream has no further response."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The model could not be loaded or executed.

    Attributes:
        code: of a HeadraceError; "" for an exception of the model's own.
        message: the error's, or the type of the exception, whose traceback is in the process' output.
        out_of_memory: the process ends after this message.
    """

    code: str = ""
    message: str
    param: str | None = None
    out_of_memory: bool = False


Message = Start | Execute | Proceed | Started | Outputs | Ended | Failed
