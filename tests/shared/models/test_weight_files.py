"""Broken files of a checkpoint are refused by name, before any tensor is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.models import safetensors_header
from shared.models.model_store import ModelRepository
from shared.models.weight_files import INDEX
from shared.settings import load

WHOLE = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"dtype": "pt"}}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def stored(header: Any, data: int = 24) -> bytes:
    """Return a file with that header and `data` bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def with_entry(**changes: Any) -> bytes:
    return stored({"a": {**WHOLE["a"], **changes}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(stored(WHOLE))
    return tmp_path


@pytest.fixture
def check(folder: Path) -> Callable[[], Path]:
    """Return the function with which every process finds its model."""
    settings = load({"model": str(folder), "served_model_name": "x"}).settings
    return ModelRepository(settings).folder


def test_whole_files_pass(folder: Path, check: Callable[[], Path]) -> None:
    assert check() == folder
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 24}, "weight_map": {"a": "model.safetensors"}})
    )
    assert check() == folder


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated: it has 0 bytes"),
        (b"\x40\0\0", "truncated: it has 3 bytes"),
        (stored(WHOLE)[:40], "truncated within its header"),
        (stored(WHOLE)[:-1], r"truncated: it has \d+ bytes, and its header describes \d+"),
        (b"\xff" * 8, "length of its header is 18446744073709551615 bytes"),
        ((safetensors_header.MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "length of its header"),
        (LFS, "pointer of Git LFS"),
        (stored(b"[1, 2]"), "malformed header"),
        (stored(b"{" * 900), "malformed header"),
        (stored(b'{"a": "\xff"}'), "malformed header"),
        (stored({"a": {"dtype": "F32"}}), "malformed header"),
        (with_entry(dtype="F33"), "tensor a has the unknown type F33"),
        (with_entry(dtype="F16"), "tensor a has 24 bytes, which do not hold F16"),
        (with_entry(shape=[-2, -3]), "do not hold"),
        (with_entry(shape=[2**62, 2**62]), "do not hold"),
        (with_entry(data_offsets=[24, 0]), "do not hold"),
        (with_entry(data_offsets=[-24, 0]), "do not hold"),
        (with_entry(data_offsets=[2**40, 2**40 + 24]), "truncated"),
    ],
)
def test_broken_file_is_refused_by_name(
    folder: Path, check: Callable[[], Path], content: bytes, reason: str
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"model\.safetensors .*{reason}|model\.safetensors: .*{reason}"):
        check()


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (LFS, "pointer of Git LFS"),
        (b"{", "malformed"),
        (b'{"weight_map": ["a"]}', "malformed"),
        (b'{"weight_map": {"a": "other.safetensors"}}', r"names other\.safetensors, which is missing"),
        (b'{"weight_map": {"a": "../model.safetensors"}}', "outside of its folder"),
        (b'{"weight_map": {"b": "model.safetensors"}}', "has the tensor b, which it has not"),
    ],
)
def test_broken_index_is_refused_by_name(
    folder: Path, check: Callable[[], Path], index: bytes, reason: str
) -> None:
    (folder / INDEX).write_bytes(index)
    with pytest.raises(ConfigError, match=rf"index\.json .*{reason}"):
        check()


def test_pointer_in_place_of_a_tokenizer_is_refused(folder: Path, check: Callable[[], Path]) -> None:
    (folder / "tokenizer.json").write_bytes(LFS)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is a pointer"):
        check()
