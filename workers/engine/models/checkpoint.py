"""Tensors of a model folder, from one or many safetensors files, which are mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigError
from shared.models.safetensors_header import StoredTensor, read_header
from shared.models.weight_files import shards
from workers.engine.kernels import Kernels
from workers.engine.models.stored.interface import StoredFormat, Tensors, read_floats, refuse_infinite
from workers.engine.quantization.grouped_weight import GroupedWeight, alike, concatenate
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.join import join

if TYPE_CHECKING:  # adapters are off by default
    from workers.engine.lora.sites import AdapterSites

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


class Checkpoint(Tensors, Protocol):
    """Tensors of files."""

    def outline(self) -> Outline:
        """Return the same tensors without their values."""

    def scales(self, ends: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        """Yield the scales of quantized tensors with a tensor's name; `ends` are those of the names of scales."""


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

    def scales(self, ends: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors whose names have one of these ends."""
        for name in self._where:
            if name.endswith(ends):
                yield name, self.read(name)


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
    """Reader of a checkpoint's tensors in the shapes, dtype and device of the model.

    Args:
        stored: format of the checkpoint's matrices.
        sites: takes note of the layers that adapters can change.

    Attributes:
        tensors: the checkpoint.
        sites: as given.
    """

    def __init__(
        self,
        checkpoint: Tensors,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        stored: StoredFormat,
        *,
        sites: AdapterSites | None = None,
    ) -> None:
        self.tensors = checkpoint
        self._dtype = dtype
        self._device = device
        self._kernels = kernels
        self._stored = stored
        self.sites = sites

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of floats. Raises ConfigError if it is missing, has another shape or type, or has NaN."""
        tensor = read_floats(self.tensors, name, shape)
        refuse_infinite(self.tensors.file(name), name, tensor)
        return tensor.to(self._device, self._dtype)

    def norm(self, name: str, size: int, *, offset: float = 0.0, wide: bool = False) -> Tensor:
        """Return the weight of a norm plus `offset`, in float32 if it is `wide`. Raises ConfigError."""
        weight = read_floats(self.tensors, name, (size,))
        refuse_infinite(self.tensors.file(name), name, weight)
        if offset and not weight.is_meta:
            weight = weight.float() + offset
        return weight.to(self._device, torch.float32 if wide else self._dtype)

    def refuse_leftovers(self, unused: Set[str] = frozenset()) -> None:
        """Raise ConfigError for tensors that the model does not use, except `unused`.

        Old checkpoints also carry `rotary_emb.inv_freq`, which is computed instead.
        """
        left = {name for name in self.tensors.unread - unused if not name.endswith("rotary_emb.inv_freq")}
        if left:
            raise ConfigError(
                f"the checkpoint has tensors that its architecture does not use: {', '.join(sorted(left)[:3])}"
            )

    def linear(
        self, prefix: str, parts: dict[str, int], size: int, *, sensitive: bool = False, adaptable: bool = True
    ) -> Linear:
        """Return one fused layer for several matrices with the same input, including their biases.

        Args:
            prefix: common beginning of the matrices' names in the checkpoint.
            parts: the rest of each name, with the matrix's number of outputs.
            size: number of inputs.
            sensitive: the layer is as sensitive to rounding as the output head, and has its format.
            adaptable: adapters may change the layer.
        """
        names = {f"{prefix}.{part}": out for part, out in parts.items()}
        weights = [self._matrix(name, out, size) for name, out in names.items()]
        biases = [
            self.tensor(f"{name}.bias", out) if f"{name}.bias" in self.tensors else None
            for name, out in names.items()
        ]
        bias = None
        if any(b is not None for b in biases):
            zeros = torch.zeros(sum(parts.values()), dtype=self._dtype, device=self._device)
            split = torch.split(zeros, list(parts.values()))
            bias = join([zero if b is None else b for b, zero in zip(biases, split, strict=True)])
        layer = self.layer(weights, bias, sensitive=sensitive)
        return self.sites.wrap(names, size, layer) if self.sites is not None and adaptable else layer

    def layer(
        self, weights: Sequence[Tensor | GroupedWeight], bias: Tensor | None, *, sensitive: bool = False
    ) -> Linear:
        """Return one fused layer for several matrices with the same input."""
        weights = [self._placed(weight) for weight in weights]
        grouped = [weight for weight in weights if isinstance(weight, GroupedWeight)]
        if len(grouped) == len(weights) and alike(grouped):
            return self._kernels.grouped_linear(concatenate(grouped), bias)
        return self._kernels.linear([self._expanded(weight) for weight in weights], bias, head=sensitive)

    def head(self, name: str, outputs: int, inputs: int, embedding: Tensor | None) -> Linear:
        """Return the output head: the matrix of that name, which is `embedding` if that is given."""
        weight = self._matrix(name, outputs, inputs)
        if isinstance(weight, GroupedWeight):
            return self._kernels.grouped_linear(weight, None, keep=True)
        return self._kernels.linear([weight if embedding is None else embedding], None, keep=True, head=True)

    def _matrix(self, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        found = self._stored.matrix(self.tensors, name, outputs, inputs)
        if not isinstance(found, GroupedWeight) and not self._kernels.packed:
            refuse_infinite(self.tensors.file(f"{name}.weight"), f"{name}.weight", found)
        return self._placed(found)

    def _placed(self, weight: Tensor | GroupedWeight) -> Tensor | GroupedWeight:
        kernels = self._kernels
        if isinstance(weight, GroupedWeight) and (
            kernels.keeps_floats if weight.is_float else kernels.keeps_groups
        ):
            return weight.to(self._device)
        return self._expanded(weight)

    def _expanded(self, weight: Tensor | GroupedWeight) -> Tensor:
        values = weight.dequantize() if isinstance(weight, GroupedWeight) else weight
        return values.to(self._device, self._dtype)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files. Raises ConfigError if it does not hold an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value
