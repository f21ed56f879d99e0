"""The clients of the matrix: their packages, pinned, and the programs that use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Client:
    """A client, installed in an environment of its own.

    Attributes:
        packages: requirements for pip or npm; the first is the client itself.
        program: file in `programs/`.
        heavy: its installation takes gigabytes or minutes.
    """

    name: str
    runtime: Literal["python", "node"]
    packages: tuple[str, ...]
    program: str
    heavy: bool = False


CLIENTS: tuple[Client, ...] = (
    Client("openai (Python)", "python", ("openai",), "openai_python.py"),
    Client("openai (Node)", "node", ("openai",), "openai_node.mjs"),
)
