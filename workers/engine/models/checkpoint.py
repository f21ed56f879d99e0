"""Tensors of a model folder, from one or many safetensors files, which are mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigError
from shared.models.safetensors_header import StoredTensor, read_header
from shared.models.weight_files import shards
from workers.engine.kernels import Kernels
from workers.engine.quantization.interface import Linear

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Tensors(Protocol):
    """Tensors of a checkpoint by name.

    Attributes:
        unread: names of tensors that have not been read.
    """

    unread: set[str]

    def __contains__(self, name: str) -> bool: ...

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor."""

    def read(self, name: str) -> Tensor:
        """Return a tensor. Raises ConfigError if the checkpoint does not have it."""


class Checkpoint(Tensors, Protocol):
    """Tensors of files."""

    def outline(self) -> Outline:
        """Return the same tensors without their values."""


class SafetensorsCheckpoint:
    """Tensors over all safetensors files of a folder; see `Tensors`. Raises ConfigError for broken files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, Any] = {}
        self._stored: dict[str, StoredTensor] = {}
        self._where: dict[str, Path] = {}
        for path in shards(folder):
            stored = read_header(path)
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{path} cannot be read: {error}", param="model") from error
            self._stored |= stored
            self._where |= dict.fromkeys(stored, path)
        self.unread = set(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def file(self, name: str) -> Path:
        return self._where.get(name, self._folder)

    def read(self, name: str) -> Tensor:
        if name not in self._where:
            raise ConfigError(f"{self._folder}: the checkpoint has no tensor {name}", param="model")
        self.unread.discard(name)
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def outline(self) -> Outline:
        """Return the same tensors without their values."""
        return Outline(self._folder, self._where, self._stored)


class Outline:
    """Tensors of a checkpoint without values, on the device "meta"; see `Tensors`.

    A model is loaded from its checkpoint's outline first, so that a checkpoint that does not fit is refused before
    memory is taken.
    """

    def __init__(self, folder: Path, where: dict[str, Path], stored: dict[str, StoredTensor]) -> None:
        self._folder = folder
        self._where = where
        self._stored = stored
        self.unread = set(stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def file(self, name: str) -> Path:
        return self._where.get(name, self._folder)

    def read(self, name: str) -> Tensor:
        if name not in self._stored:
            raise ConfigError(f"{self._folder}: the checkpoint has no tensor {name}", param="model")
        self.unread.discard(name)
        dtype, shape = self._stored[name]
        if dtype not in _DTYPES:
            raise ConfigError(f"{self.file(name)}: tensor {name} has the unsupported type {dtype}", param="model")
        return torch.empty(shape, dtype=_DTYPES[dtype], device="meta")


class WeightReader:
    """Reader of a checkpoint's tensors in the shapes, dtype and device of the model."""

    def __init__(
        self,
        checkpoint: Tensors,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._kernels = kernels

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Return a tensor. Raises ConfigError if it is missing, has another shape, is quantized or has NaN."""
        tensor = self._read(name, shape)
        refuse_infinite(self._checkpoint.file(name), name, tensor)
        return tensor.to(self._device, self._dtype)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._checkpoint.read(name)
        file = self._checkpoint.file(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"{file}: tensor {name} has shape {tuple(tensor.shape)}; config.json implies {shape}",
                param="model",
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ConfigError(
                f"{file}: tensor {name} has dtype {tensor.dtype}; only float32, bfloat16 and float16 are supported",
                param="model",
            )
        return tensor

    def refuse_leftovers(self, unused: Set[str] = frozenset()) -> None:
        """Raise ConfigError for tensors that the model does not use, except `unused`.

        Old checkpoints also carry `rotary_emb.inv_freq`, which is computed instead.
        """
        left = {name for name in self._checkpoint.unread - unused if not name.endswith("rotary_emb.inv_freq")}
        if left:
            raise ConfigError(
                f"the checkpoint has tensors that its architecture does not use: {', '.join(sorted(left)[:3])}"
            )

    def linear(self, prefix: str, parts: dict[str, int], size: int) -> Linear:
        """Return one fused layer for several matrices with the same input, including their biases.

        Args:
            prefix: common beginning of the matrices' names in the checkpoint.
            parts: the rest of each name, with the matrix's number of outputs.
            size: number of inputs.
        """
        names = {f"{prefix}.{part}": out for part, out in parts.items()}
        weights = []
        for name, out in names.items():
            weight = self._read(f"{name}.weight", (out, size))
            if not self._kernels.packed:
                refuse_infinite(self._checkpoint.file(f"{name}.weight"), f"{name}.weight", weight)
            weights.append(weight.to(self._device, self._dtype))
        biases = [
            self.tensor(f"{name}.bias", out) if f"{name}.bias" in self._checkpoint else None
            for name, out in names.items()
        ]
        bias = None
        if any(b is not None for b in biases):
            bias = torch.cat(
                [
                    weight.new_zeros(len(weight)) if b is None else b
                    for b, weight in zip(biases, weights, strict=True)
                ]
            )
        return self._kernels.linear(weights, bias)


def refuse_infinite(file: Path, name: str, tensor: Tensor) -> None:
    """Raise ConfigError for a tensor of `file` with NaN or infinity."""
    if tensor.device.type == "meta" or not tensor.numel():
        return
    if not all(bound.isfinite() for bound in tensor.aminmax()):  # NaN becomes both bounds; no copy is made
        raise ConfigError(f"{file}: tensor {name} has values that are not finite", param="model")


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files. Raises ConfigError if it does not hold an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value
