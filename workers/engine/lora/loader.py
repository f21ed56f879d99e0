"""Loading of adapters: the check of their matrices against the model, and their form in memory.

For a matrix W [out, in] of the model, an adapter has A [r, in] and B [out, r], and adds scale * (x A^T) B^T to
x W^T. B is kept times the scale.

Reference: LoRA, https://arxiv.org/abs/2106.09685; PEFT's names of tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from shared.errors import ConfigError
from shared.models.safetensors_header import StoredTensor
from workers.engine.lora.adapter_config import AdapterConfig, parse_adapter_config
from workers.engine.lora.adapter_folder import CONFIG_NAME, AdapterChanged, AdapterFolder, open_folder
from workers.engine.lora.sites import AdapterSites, AddProducts, Module
from workers.engine.lora.weights import AdapterWeights
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.low_rank import LowRank

PREFIX = "base_model.model."
TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>[\w.]+)\.lora_(?P<side>[AB])(?:\.default)?\.weight", re.ASCII
)
FLOATS = ("F32", "F16", "BF16")
MakeLinear = Callable[[Tensor], Linear]


class AdapterLoader:
    """Loader of the adapters of one model; see `AdapterReader`.

    Args:
        root: the folder in which they must lie.
        make_linear: makes a layer of a matrix on the model's device and in its type; its results are new tensors.
        add_products: adds products of such layers to rows.

    Attributes:
        sites: the layers of the model, which take note of themselves while it is loaded.
    """

    def __init__(
        self,
        root: Path,
        make_linear: MakeLinear,
        add_products: AddProducts,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_rank: int,
    ) -> None:
        self.sites = AdapterSites(add_products)
        self._root = root
        self._make_linear = make_linear
        self._dtype = dtype
        self._device = device
        self._max_rank = max_rank

    def load(self, path: str, digest: str | None = None) -> AdapterWeights:
        """See `AdapterReader`."""
        try:
            folder = open_folder(self._root, path)
            config = parse_adapter_config(folder.folder / CONFIG_NAME, folder.config, self._max_rank)
            pairs = _pairs(folder, config, self.sites)
            data = folder.read()
        except OSError as error:
            raise ConfigError(
                f"the adapter {path!r} cannot be read: {error.strerror}", param="lora_path"
            ) from error
        found = folder.digest(data)
        if digest not in (None, found):
            raise AdapterChanged(f"the files of the adapter {path!r} have changed", param="lora_path")
        try:
            return self._build(folder, config, pairs, data, found)
        except (MemoryError, RuntimeError) as error:  # torch's errors of memory
            raise ConfigError(
                f"the adapter {path!r} cannot be placed in memory: {error}", param="lora_path"
            ) from error

    @torch.inference_mode()
    def _build(
        self, folder: AdapterFolder, config: AdapterConfig, pairs: Mapping[str, Pair], data: bytes, digest: str
    ) -> AdapterWeights:
        try:
            tensors = load_tensors(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder.weights} cannot be read: {error}", param="lora_path") from error
        products: defaultdict[str, list[LowRank]] = defaultdict(list)
        num_bytes = 0
        for name, pair in pairs.items():
            module = self.sites.modules[name]
            down = self._read(folder, tensors, pair.down)
            up = self._read(folder, tensors, pair.up, config.scale_of(name))
            num_bytes += down.nbytes + up.nbytes
            product = LowRank(
                down=self._make_linear(down.to(self._device)),
                up=self._make_linear(up.to(self._device)),
                rank=len(down),
                start=module.start,
                outputs=module.outputs,
            )
            products[module.site].append(product)
        rank = max(config.rank_of(name) for name in pairs)
        return AdapterWeights(digest, rank, num_bytes, products)

    def _read(self, folder: AdapterFolder, tensors: Mapping[str, Tensor], name: str, scale: float = 1.0) -> Tensor:
        """Return a tensor times `scale` in the model's type. Raises ConfigError if it is not finite."""
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != folder.tensors[name].shape:
            raise ConfigError(f"{folder.weights} has changed while it was read", param="lora_path")
        values = (tensor.float() * scale).to(self._dtype)
        if not bool(values.isfinite().all()):
            raise ConfigError(f"{folder.weights}: tensor {name} has values that are not finite", param="lora_path")
        return values


@dataclass
class Pair:
    """Names of the tensors of one module."""

    down: str = ""
    up: str = ""


def _pairs(folder: AdapterFolder, config: AdapterConfig, sites: AdapterSites) -> dict[str, Pair]:
    """Return the tensors of each module, of which none has been read.

    Raises ConfigError for tensors that the model does not have, that are missing, or of another shape or type.
    """
    pairs: defaultdict[str, Pair] = defaultdict(Pair)
    for tensor, stored in folder.tensors.items():
        found = TENSOR.fullmatch(tensor)
        if found is None:
            raise ConfigError(
                f"{folder.weights}: tensor {tensor[:200]} is no matrix of a LoRA adapter", param="lora_path"
            )
        name, down = found["module"], found["side"] == "A"
        if name not in sites.modules:
            raise ConfigError(f"{folder.weights}: {_not_adapted(name)}", param="lora_path")
        _check_shape(folder.weights, tensor, stored, _shape(config, name, sites.modules[name], down=down))
        side = "down" if down else "up"
        if getattr(pairs[name], side):
            raise ConfigError(f"{folder.weights} has two matrices of one kind for {name}", param="lora_path")
        setattr(pairs[name], side, tensor)
    for name, pair in pairs.items():
        if not (pair.down and pair.up):
            missing_side = "lora_B" if pair.down else "lora_A"
            raise ConfigError(f"{folder.weights} has no {missing_side} of {name}", param="lora_path")
    missing = [name for name in sites.modules if config.aims_at(name) and name not in pairs]
    if missing or not pairs:
        raise ConfigError(
            f"{folder.weights} has no matrices of {missing[0] if missing else 'any layer'}, which target_modules "
            f"of {CONFIG_NAME} names",
            param="lora_path",
        )
    return dict(pairs)


def _shape(config: AdapterConfig, name: str, module: Module, *, down: bool) -> tuple[int, int]:
    rank = config.rank_of(name)
    return (rank, module.inputs) if down else (module.outputs, rank)


def _check_shape(path: Path, name: str, stored: StoredTensor, shape: tuple[int, int]) -> None:
    if stored.shape != shape:
        raise ConfigError(
            f"{path}: tensor {name} has shape {stored.shape}; the model and {CONFIG_NAME} imply {shape}",
            param="lora_path",
        )
    if stored.dtype not in FLOATS:
        raise ConfigError(
            f"{path}: tensor {name} has type {stored.dtype}; allowed: {', '.join(FLOATS)}", param="lora_path"
        )


def _not_adapted(name: str) -> str:
    """Return why a module cannot be adapted."""
    if ".experts" in name:
        return f"{name} is in an expert of a mixture, where adapters are not supported"
    if name.endswith(("lm_head", "embed_tokens", "embed_in", "router", ".gate")):
        return f"adapters of {name} are not supported; only those of attention and of dense MLPs are"
    return f"the model has no layer {name[:200]}"
