"""Check of the archives of torch.export, which torch.export.load would unpickle and evaluate in places.

It loads some weights, constants and sample inputs as pickles, and passes the expressions of symbolic sizes to
`sympy.sympify`, which evaluates them as Python.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MAX_CONFIG_BYTES = 1 << 28
MEMBERS = re.compile(  # without the archive's own folder
    r"archive_format|archive_version|byteorder|version|\.data/.+|\.format_version|\.storage_alignment|"
    r"data/(weights|constants)/(weight_\d+|tensor_\d+|.+_config\.json)|data/sample_inputs/.+\.pt|"
    r"models/.+\.json|extra/.+"
)
QUOTED_NAME = re.compile(r"'[A-Za-z]\w*'")  # of a symbol
UNSAFE_EXPRESSION = re.compile(r"__|[^\w\s+\-*/%(),.<>=!&|~]|\.\s*[A-Za-z_]")


class UnsafeArchive(Exception):
    """The archive holds code, or torch.export has not written it; the message is a clause that says so."""


def check(path: Path) -> None:
    """Raise UnsafeArchive unless the archive can be loaded without executing code of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive)
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnsafeArchive(f"it is no archive of torch.export: {error}") from error


def _check(archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    if len(set(names)) < len(names) or len({name.split("/")[0] for name in names}) != 1:
        raise UnsafeArchive("it is no archive of torch.export")
    for name in names:
        member = name.partition("/")[2]
        if not MEMBERS.fullmatch(member):
            raise UnsafeArchive(f"it holds {member}, which is not loaded since it may hold code")
        if member.endswith("_config.json"):
            _check_payloads(_json(archive, name))
        elif member.startswith("models/"):
            _check_expressions(_json(archive, name))
        elif member.startswith("data/sample_inputs/"):
            _check_sample(archive.read(name))


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > MAX_CONFIG_BYTES:
        raise UnsafeArchive(f"{name} is too large")
    return json.loads(archive.read(name))


def _check_payloads(config: Any) -> None:
    payloads = config.get("config", {}) if isinstance(config, dict) else {}
    for name, payload in payloads.items():
        if payload.get("use_pickle") is not False:
            raise UnsafeArchive(f"its tensor {name} is pickled, and pickles are never loaded")


def _check_expressions(model: Any) -> None:
    for text in _expressions(model):
        if UNSAFE_EXPRESSION.search(QUOTED_NAME.sub("", text)):
            raise UnsafeArchive("a symbolic size in it is no arithmetic expression")


def _expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("expr_str"), str):
            yield node["expr_str"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _expressions(each)


def _check_sample(data: bytes) -> None:
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # a pickle may raise anything
        raise UnsafeArchive("its sample inputs are no tensors") from error
