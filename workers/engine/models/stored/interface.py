"""Interface of a format in which a checkpoint stores matrices."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.quantization.grouped_weight import Bits, GroupedWeight

KERNEL_GROUPS = (128, 64, 32)  # sizes of groups that all kernels have


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


class StoredFormat(Protocol):
    """Format of a checkpoint's matrices."""

    @property
    def scales(self) -> tuple[str, ...]:
        """Ends of the names of tensors with scales."""

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        """Return the matrix of the layer `name`, [outputs, inputs]: packed, or as floats of any type.

        `tensors` may be on the device "meta", without values. Raises ConfigError for tensors that are missing, of
        another shape or type, or with scales that are not finite; the caller checks floats.
        """


class Plain:
    """Format of float matrices; see `StoredFormat`."""

    scales: ClassVar[tuple[str, ...]] = ()

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor:
        return read_floats(tensors, f"{name}.weight", (outputs, inputs))


def read_scales(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of floats with finite values in float32. Raises ConfigError."""
    found = read_floats(tensors, name, shape).float()
    refuse_infinite(tensors.file(name), name, found)
    return found


def read_floats(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of floats. Raises ConfigError."""
    found = read_of_shape(tensors, name, shape)
    if not found.is_floating_point() or found.element_size() < 2:
        raise ConfigError(
            f"{tensors.file(name)}: tensor {name} has dtype {found.dtype}; only float32, bfloat16 and float16 are "
            "supported",
            param="model",
        )
    return found


def read_of_shape(tensors: Tensors, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
    """Return a tensor of that shape, and of one of the types if any are given. Raises ConfigError."""
    found = tensors.read(name)
    if tuple(found.shape) != shape:
        raise ConfigError(
            f"{tensors.file(name)}: tensor {name} has shape {tuple(found.shape)}; config.json implies {shape}",
            param="model",
        )
    if dtypes and found.dtype not in dtypes:
        raise ConfigError(
            f"{tensors.file(name)}: tensor {name} has dtype {found.dtype}; config.json implies "
            f"{' or '.join(map(str, dtypes))}",
            param="model",
        )
    return found


def refuse_infinite(file: Path, name: str, tensor: Tensor) -> None:
    """Raise ConfigError for a tensor of `file` with NaN or infinity."""
    if tensor.device.type == "meta" or not tensor.numel():
        return
    if not all(bound.isfinite() for bound in tensor.aminmax()):  # NaN becomes both bounds; no copy is made
        raise ConfigError(f"{file}: tensor {name} has values that are not finite", param="model")


def make_grouped(
    bits: Bits, codes: Tensor, scales: Tensor, zeros: Tensor, order: Tensor | None = None
) -> GroupedWeight | None:
    """Return a weight for the kernels, or None if they cannot have its groups.

    Args:
        codes: [out, in], of int32; from 0 for 4 bits, signed for 8 bits.
        scales: [out, groups]; zeros: the same, or broadcast to it.
        order: the input of each place.
    """
    inputs = codes.shape[1]
    groups = scales.shape[1]
    size = inputs if groups == 1 else -(-inputs // groups)
    fitting = [each for each in KERNEL_GROUPS if groups == 1 or size % each == 0]
    if not fitting or (groups > 1 and size * groups != inputs):
        return None
    group = fitting[0]
    padded = torch.nn.functional.pad(codes, (0, -inputs % group))
    repeats = padded.shape[1] // group if groups == 1 else size // group
    scales, zeros = (part.float().repeat_interleave(repeats, 1) for part in (scales, zeros.expand_as(scales)))
    factors = scales.abs().amax(1).clamp_min(2.0**-100)
    if groups > 1:
        factors = factors.log2().floor().exp2()  # scales of float16 keep their bits
    kind = torch.uint8 if bits == 4 else torch.int8
    halves = (scales / factors[:, None]).half()
    return GroupedWeight(bits, group, padded.to(kind), halves, zeros.half(), factors, inputs, order)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the unsigned integers in [n, m] int32, lowest bits first: [n, m * 32 / bits] int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    found: Tensor = (packed[:, :, None] >> shifts) & (2**bits - 1)
    return found.flatten(1)
