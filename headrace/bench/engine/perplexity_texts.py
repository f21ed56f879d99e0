"""Texts on which weight formats are compared. None of them is in the text that int4 is calibrated with.

They come with the packages that Headrace requires, and are the same on every machine for the same versions.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path

_DESCRIBED = ("fastapi", "redis", "rich", "structlog", "typer", "transformers")
_SOURCES = ("nn/modules/transformer.py", "optim/adamw.py", "nn/modules/rnn.py")


def licence_text() -> str:
    """Return all different licences in torch's package, in the order of their paths."""
    packages = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    paths = sorted(packages.glob("torch-*.dist-info/licenses/**/*"))
    texts = dict.fromkeys(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    return "\n\n".join(texts)


def reference_text() -> str:
    """Return the topics of Python's language reference that `help` shows."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def code_text() -> str:
    """Return some of torch's Python sources."""
    package = Path(str(importlib.metadata.distribution("torch").locate_file("torch")))
    return "\n\n".join((package / name).read_text(encoding="utf-8") for name in _SOURCES)


def description_text() -> str:
    """Return the descriptions with which some of the packages are published."""
    return "\n\n".join(importlib.metadata.metadata(name)["Description"] for name in _DESCRIBED)


TEXTS: Mapping[str, Callable[[], str]] = {
    "licences": licence_text,
    "reference": reference_text,
    "code": code_text,
    "descriptions": description_text,
}
