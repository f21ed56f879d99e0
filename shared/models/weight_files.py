"""Files of a model folder's weights, and the check that they are whole, which reads none of the weights."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from shared.errors import ConfigError
from shared.models.gguf_header import read_gguf_header
from shared.models.safetensors_header import DTYPE_BITS, StoredTensor, read_header

INDEX = "model.safetensors.index.json"
GGUF_SUFFIX = ".gguf"
GGUF_NAME = "model.gguf"  # in a model folder
MAX_INDEX_BYTES = 2**25
POINTER = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights in a folder: a GGUF file, or those in safetensors, by name."""
    gguf = folder / GGUF_NAME
    return [gguf] if gguf.is_file() else sorted(folder.glob("*.safetensors"))


def loaded_bytes(folder: Path, float_bytes: int) -> int:
    """Return the memory of the weights in a folder: integers as stored, others expanded to floats of that size.

    `folder` may be a GGUF file. Raises ConfigError for a broken file.
    """
    total = 0
    for path in [folder] if folder.is_file() else weight_files(folder):
        if path.suffix == GGUF_SUFFIX:
            total += sum(math.prod(each.shape) for each in read_gguf_header(path).tensors.values()) * float_bytes
        else:
            total += sum(_loaded(each, float_bytes) for each in read_header(path).values())
    return total


def _loaded(tensor: StoredTensor, float_bytes: int) -> int:
    is_float = tensor.dtype.startswith(("F", "BF"))
    return math.prod(tensor.shape) * (float_bytes if is_float else DTYPE_BITS[tensor.dtype] // 8)


def check_weight_files(folder: Path) -> None:
    """Raise ConfigError, with the file and the reason, for files that are not whole."""
    refuse_pointers(folder)
    if (folder / GGUF_NAME).is_file():
        read_gguf_header(folder / GGUF_NAME)
        return
    for path in shards(folder) if (folder / INDEX).is_file() else weight_files(folder):
        read_header(path)


def shards(folder: Path) -> list[Path]:
    """Return the files that hold the checkpoint of a folder: one, or those that its index names.

    Raises ConfigError for a missing file, and for an index that contradicts the files.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise ConfigError(f"{folder} has no model.safetensors; other formats are not supported", param="model")
        return [folder / "model.safetensors"]
    located = _read_index(index)
    names = sorted(set(located.values()))
    for name in names:
        if Path(name).name != name:
            raise ConfigError(f"{index} names a file outside of its folder: {name}", param="model")
        if not (folder / name).is_file():
            raise ConfigError(f"{index} names {name}, which is missing; download it", param="model")
    held = {name: read_header(folder / name) for name in names}
    for tensor, name in located.items():
        if tensor not in held[name]:
            raise ConfigError(f"{index} says that {name} has the tensor {tensor}, which it has not", param="model")
    return [folder / name for name in names]


def refuse_pointers(folder: Path) -> None:
    """Raise ConfigError for a file of a folder that Git LFS has not downloaded."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        refuse_pointer(path)


def refuse_pointer(path: Path) -> None:
    """Raise ConfigError for a file that Git LFS has not downloaded."""
    if path.stat().st_size <= MAX_POINTER_BYTES and path.read_bytes().startswith(POINTER):
        raise ConfigError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull`", param="model")


def _read_index(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_INDEX_BYTES} bytes", param="model")
        return msgspec.json.decode(path.read_bytes(), type=_Index).weight_map
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", param="model") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is malformed: {error}", param="model") from error
