"""Tensors of a GGUF file under Hugging Face's names and in their order of rows."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.models.gguf_header import BLOCK_TYPES, GgufHeader, GgufTensor, read_gguf_header
from shared.models.safetensors_header import StoredTensor
from workers.engine.models.checkpoint import Outline
from workers.engine.models.gguf.blocks import grouped_weight
from workers.engine.models.gguf.config import ROPE_FACTORS, ROTATED_IN_PAIRS
from workers.engine.models.gguf.dequantize import dequantize
from workers.engine.models.stored.interface import Plain, Tensors, refuse_infinite
from workers.engine.quantization.grouped_weight import GroupedWeight

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = {  # of Gemma 2 and 3, which have norms after attention and MLP too
    **_NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class GgufCheckpoint:
    """Tensors of a file; see `Tensors`. `read` expands quantized ones to float32. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header = read_gguf_header(path)
        self._names = _names(self._header)
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants writable memory
        self.unread = set(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def file(self, name: str) -> Path:
        return self._path

    def read(self, name: str) -> Tensor:
        if name not in self._names:
            raise ConfigError(f"{self._path} has no tensor {name}", param="model")
        self.unread.discard(name)
        own = self._names[name]
        stored = self._header.tensors[own]
        found = dequantize(self._bytes(stored), stored.type, stored.shape)
        if own.endswith("norm.weight") and self._header.metadata["general.architecture"].startswith("gemma"):
            return found - 1  # ggml stores what the norm multiplies with, transformers that minus 1
        order = self._row_order(own)
        return found if order is None else found[order]

    def grouped(self, name: str) -> GroupedWeight | None:
        """Return a matrix in groups; None for one that has another form. Raises ConfigError for NaN."""
        own = self._names.get(name)
        stored = None if own is None else self._header.tensors[own]
        if own is None or stored is None or len(stored.shape) != 2:
            return None
        found = grouped_weight(self._bytes(stored), stored.type, stored.shape)
        if found is None:
            return None
        self.unread.discard(name)
        for part in (found.scales, found.zeros, found.factors):
            refuse_infinite(self._path, name, part)
        order = self._row_order(own)
        return found if order is None else found.rows(order)

    def _row_order(self, own: str) -> Tensor | None:
        """Return the file's number of each row of queries or keys, if it differs from the row's own."""
        architecture = self._header.metadata["general.architecture"]
        if architecture not in ROTATED_IN_PAIRS:
            return None
        if not own.rpartition(".")[0].endswith(("attn_q", "attn_k")):
            return None
        heads = self._header.metadata[f"{architecture}.attention.head_count"]
        if "attn_k" in own:
            heads = self._header.metadata.get(f"{architecture}.attention.head_count_kv", heads)
        return _pair_halves(torch.arange(self._header.tensors[own].shape[0]), heads)

    def outline(self) -> Outline:
        """Return the same tensors without their values."""
        stored = {name: StoredTensor("F32", self._header.tensors[own].shape) for name, own in self._names.items()}
        return Outline(self._path, dict.fromkeys(self._names, self._path), stored)

    def scales(self, ends: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        """Yield the scales in the blocks of each tensor."""
        for name, own in self._names.items():
            stored = self._header.tensors[own]
            block = BLOCK_TYPES[stored.type]
            for at in block.halves:
                yield name, self._bytes(stored).view(torch.float16).view(-1, block.size // 2)[:, at // 2]

    def _bytes(self, stored: GgufTensor) -> Tensor:
        return torch.frombuffer(
            self._mapped, dtype=torch.uint8, count=stored.end - stored.begin, offset=stored.begin
        )


class GgufMatrices:
    """Matrices of a GGUF file; see `StoredFormat`. Their scales are not tensors of their own."""

    scales: ClassVar[tuple[str, ...]] = ()

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        found = tensors.grouped(f"{name}.weight") if isinstance(tensors, GgufCheckpoint) else None
        return Plain().matrix(tensors, name, outputs, inputs) if found is None else found


def read_rope_factors(path: Path, header: GgufHeader) -> list[float] | None:
    """Return the divisors of the rotary frequencies, if the file has them. Raises ConfigError."""
    stored = header.tensors.get(ROPE_FACTORS)
    if stored is None:
        return None
    with path.open("rb") as file:
        file.seek(stored.begin)
        data = torch.frombuffer(bytearray(file.read(stored.end - stored.begin)), dtype=torch.uint8)
    factors = dequantize(data, stored.type, stored.shape).float()
    if not ((factors > 0) & factors.isfinite()).all():
        raise ConfigError(f"{path}: tensor {ROPE_FACTORS} must have positive values", param="model")
    found: list[float] = factors.tolist()
    return found


def _names(header: GgufHeader) -> dict[str, str]:
    """Return the file's names by Hugging Face's. Unknown ones keep their name, so that they are found left over."""
    known = _GEMMA_NAMES if header.metadata["general.architecture"] in ("gemma2", "gemma3") else _NAMES
    found = {}
    for own in header.tensors:
        if own == ROPE_FACTORS:
            continue
        stem, _, kind = own.rpartition(".")
        layer = _IN_LAYER.fullmatch(stem)
        prefix, stem = (f"model.layers.{layer[1]}.", layer[2]) if layer else ("", stem)
        found[f"{prefix}{known[stem]}.{kind}" if stem in known else own] = own
    return found


def _pair_halves(found: Tensor, heads: int) -> Tensor:
    """Reorder rows of queries or keys: ggml rotates dimensions 2 i and 2 i + 1 of a head, we i and i + dim / 2."""
    return found.view(heads, -1, 2).transpose(1, 2).flatten()
