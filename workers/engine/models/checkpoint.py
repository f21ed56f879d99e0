"""Tensors of a model folder, from one or many safetensors files, which are mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.kernels import Kernels
from workers.engine.quantization.interface import Linear


class Checkpoint:
    """Tensors by name over all safetensors files of a folder.

    Attributes:
        unread: names of tensors that have not been read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        for name in self._file_names():
            try:
                file = safe_open(folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{folder / name} cannot be read: {error}") from error
            self._files[name] = file
            self._where |= dict.fromkeys(file.keys(), name)  # type: ignore[no-untyped-call]  # safetensors has none
        self.unread = set(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str) -> Tensor:
        """Return a tensor. Raises ConfigError if the checkpoint does not have it."""
        if name not in self._where:
            raise ConfigError(f"{self._folder}: the checkpoint has no tensor {name}")
        self.unread.discard(name)
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def _file_names(self) -> list[str]:
        index = self._folder / "model.safetensors.index.json"
        if not index.is_file():
            if not (self._folder / "model.safetensors").is_file():
                raise ConfigError(f"{self._folder} has no model.safetensors; other formats are not supported")
            return ["model.safetensors"]
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ConfigError(f"{index} names a file outside of its folder: {outside[0]}")
        return names


class WeightReader:
    """Reader of a checkpoint's tensors in the shapes, dtype and device of the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._kernels = kernels

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Return a tensor. Raises ConfigError if it is missing, has another shape or is quantized."""
        tensor = self._checkpoint.read(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"tensor {name} has shape {tuple(tensor.shape)}; config.json implies {shape}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ConfigError(
                f"tensor {name} has dtype {tensor.dtype}; only float32, bfloat16 and float16 are supported"
            )
        return tensor.to(self._device, self._dtype)

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
        weights = [self.tensor(f"{name}.weight", out, size) for name, out in names.items()]
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


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files. Raises ConfigError if it does not hold an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value
