"""Headers of GGUF files: what is read, and that broken ones are refused by name before a tensor is read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.models import gguf_header
from shared.models.gguf_header import GgufHeader, GgufTensor, read_gguf_header

F32, Q8_0 = 0, 8


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    """Return the entry of a tensor; `shape` in torch's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


METADATA = [
    pair("general.architecture", 8, text("llama")),
    pair("llama.block_count", 4, struct.pack("<I", 2)),
    pair("eps", 6, struct.pack("<f", 0.5)),
    pair("flag", 7, b"\1"),
    pair("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    pair("counts", 9, struct.pack("<IQ", 5, 2) + struct.pack("<2i", -1, 7)),
]
TENSORS = [tensor("norm", [4], F32, 0), tensor("matrix", [2, 32], Q8_0, 32)]


def content(metadata: list[bytes] = METADATA, tensors: list[bytes] = TENSORS, data: int = 32 + 68) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata + tensors)
    return head + bytes(-len(head) % 32 + data)


def read(tmp_path: Path, data: bytes, *arrays: str) -> GgufHeader:
    (tmp_path / "tiny.gguf").write_bytes(data)
    return read_gguf_header(tmp_path / "tiny.gguf", arrays)


def test_metadata_and_places_of_tensors(tmp_path: Path) -> None:
    header = read(tmp_path, content(), "tokens")
    expected: dict[str, Any] = {"general.architecture": "llama", "llama.block_count": 2, "eps": 0.5, "flag": True}
    assert header.metadata == {**expected, "tokens": ["a", "b"], "counts": [-1, 7]}
    begin = len(content()) - 100
    assert header.tensors == {
        "norm": GgufTensor(F32, (4,), begin, begin + 16),
        "matrix": GgufTensor(Q8_0, (2, 32), begin + 32, begin + 100),
    }
    assert read(tmp_path, content()).metadata["tokens"] is None


def test_alignment_of_the_file_counts(tmp_path: Path) -> None:
    plain = read(tmp_path, content(TENSORS[:0], TENSORS[:1])).tensors["norm"].begin
    aligned = [pair("general.alignment", 4, struct.pack("<I", 256))]
    found = read(tmp_path, content(aligned, TENSORS[:1], 512)).tensors["norm"].begin
    assert (plain, found) == (64, 256)


@pytest.mark.parametrize("size", range(0, len(content()), 7))
def test_file_cut_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.gguf is (truncated|not a GGUF file)"):
        read(tmp_path, content()[:size])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GGML" + content()[4:], "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "has version 1 of GGUF; supported: 2, 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "has version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "1152921504606846976 metadata values"),
        (content([text("k") + struct.pack("<IQ", 8, 2**30)]), "has a text of 1073741824 bytes"),
        (content([pair("k", 9, struct.pack("<IQ", 4, 2**22))]), "truncated within its header"),
        (content([pair("k", 9, struct.pack("<IQ", 8, 2**22))]), "truncated within its header"),
        (content([pair("k", 9, struct.pack("<IQ", 4, 2**61))]), "k has 2305843009213693952 values"),
        (content([pair("k", 9, struct.pack("<IQ", 9, 1))]), "k has a value of type 9"),
        (content([pair("k", 77, b"")]), "k has a value of type 77"),
        (content([pair("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment is 0"),
        (content([pair("general.alignment", 8, text("x"))]), "general.alignment is 'x'"),
        (content(tensors=[tensor("t", [1] * 5, F32, 0)]), "tensor t has 5 dimensions"),
        (content(tensors=[tensor("t", [], F32, 0)]), "tensor t has 0 dimensions"),
        (content(tensors=[tensor("t", [0, 4], F32, 0)]), r"F32 cannot hold tensor t of the shape \[0, 4\]"),
        (content(tensors=[tensor("t", [2, 33], Q8_0, 0)]), r"Q8_0 cannot hold tensor t of the shape \[2, 33\]"),
        (content(tensors=[tensor("t", [32], 99, 0)]), "tensor t in ggml's type 99; supported: F32"),
        (content(tensors=[tensor("t", [2**62, 2**62], F32, 0)]), "is truncated: it has"),
        (content(tensors=[tensor("t", [4], F32, 2**63)]), "is truncated: it has"),
        (content(tensors=[TENSORS[0], TENSORS[0]]), "it has tensor norm twice"),
    ],
)
def test_broken_file_is_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"tiny\.gguf .*{reason}"):
        read(tmp_path, data)


def test_long_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the file has all of their bytes."""
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 1000)
    monkeypatch.setattr(gguf_header, "MAX_ARRAY", 8)
    with pytest.raises(ConfigError, match="its header has more than 1000 bytes"):
        read(tmp_path, content([pair(f"k{index}", 8, text("x" * 90)) for index in range(10)]))
    with pytest.raises(ConfigError, match="k has 9 values"):
        read(tmp_path, content([pair("k", 9, struct.pack("<IQ", 0, 9) + bytes(9))]))
