"""The folder of an adapter: where it may lie, and the contents of its files, read once.

The digest is that of the bytes which are loaded: a file that changes meanwhile is another adapter.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path, PurePath

from shared.errors import ConfigError
from shared.models.safetensors_header import DTYPE_BITS, LENGTH_BYTES, MAX_HEADER_BYTES, StoredTensor, read_header
from shared.models.weight_files import refuse_pointer

CONFIG_NAME, WEIGHTS_NAME, PICKLED_NAME = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG_BYTES = 2**20


class AdapterMissing(ConfigError):
    """There is no folder of that path."""


class AdapterChanged(ConfigError):
    """The contents of an adapter's files are not those that a request was admitted for."""


@dataclass(frozen=True)
class AdapterFolder:
    """Files of one adapter.

    Attributes:
        config: contents of adapter_config.json.
        tensors: the header of adapter_model.safetensors.
    """

    folder: Path
    root: Path
    config: bytes
    tensors: dict[str, StoredTensor]

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_NAME

    def read(self) -> bytes:
        """Return the contents of adapter_model.safetensors. Raises ConfigError."""
        path = _inside(self.weights, self.root)
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(LENGTH_BYTES), "little")
            expected = LENGTH_BYTES + min(header, MAX_HEADER_BYTES) + sum(map(_num_bytes, self.tensors.values()))
            if size != expected:
                raise ConfigError(f"{path} has {size} bytes, and its header describes {expected}", param="model")
            file.seek(0)
            data = file.read(expected)
        if len(data) != expected:
            raise ConfigError(f"{path} has changed while it was read", param="model")
        return data

    def digest(self, weights: bytes) -> str:
        """Return the digest of the adapter's contents, given those of its weights."""
        found = hashlib.sha256(len(self.config).to_bytes(8, "little") + self.config)
        found.update(weights)
        return found.hexdigest()


def open_folder(root: Path, path: str) -> AdapterFolder:
    """Open the folder at `path`, absolute or relative to `root`, in which it must lie.

    Raises ConfigError: for a path or a link that leads elsewhere, a missing file, or one that is not whole.
    """
    root = root.expanduser().resolve()
    folder = _folder(root, path)
    if not (folder / WEIGHTS_NAME).is_file() and (folder / PICKLED_NAME).exists():
        raise ConfigError(
            f"{folder / PICKLED_NAME} is a pickle, which can run code; save the adapter as {WEIGHTS_NAME}",
            param="lora_path",
        )
    config = _inside(folder / CONFIG_NAME, root)
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"{config} is longer than {MAX_CONFIG_BYTES} bytes", param="lora_path")
    weights = _inside(folder / WEIGHTS_NAME, root)
    refuse_pointer(weights)
    with config.open("rb") as file:
        contents = file.read(MAX_CONFIG_BYTES)
    return AdapterFolder(folder, root, contents, read_header(weights))


def _folder(root: Path, path: str) -> Path:
    """Return the folder that a path leads to, links resolved. Raises ConfigError unless it is within `root`."""
    if not path or "\0" in path or ".." in PurePath(path).parts:
        raise ConfigError("the path of an adapter must not be empty, and must not have '..'", param="lora_path")
    missing = AdapterMissing(f"No adapter found for {path!r} in lora_dir", param="lora_path")
    try:
        folder = (root / path).resolve()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, UnicodeError):  # too long, links in a circle, or no name of a file
        raise missing from None
    if folder == root or not folder.is_relative_to(root):
        raise ConfigError(f"the adapter {path!r} is not in lora_dir", param="lora_path")
    if not is_folder:
        raise missing
    return folder


def _inside(path: Path, root: Path) -> Path:
    """Return the file that a path leads to. Raises ConfigError unless it is a regular file within `root`."""
    if not path.is_file():
        raise ConfigError(f"{path.parent} has no {path.name}", param="lora_path")
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise ConfigError(f"{path} is a link out of lora_dir", param="lora_path")
    return resolved


def _num_bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
