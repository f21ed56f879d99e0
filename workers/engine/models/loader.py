"""Reads a checkpoint folder: config.json and safetensors, mapped rather than read, one file or many.

Whatever does not fit, or would be left over, is refused: a model is loaded right or not at all. It knows
nothing of requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigError
from shared.protocol import PROTOCOL_VERSION
from workers.engine.kernels import HeadLayout, Kernels
from workers.engine.models.config import ARCHITECTURES, ModelConfig, token_ids
from workers.engine.models.decoder import Decoder, DecoderConfig
from workers.engine.models.llama import LayerWeights, Llama, LlamaWeights
from workers.engine.models.rope import rope_table
from workers.engine.quantization.interface import Linear

HEAD = 2**20  # bytes of a file that its fingerprint reads
Progress = Callable[[float], None]


def read_model_config(folder: Path) -> DecoderConfig:
    """Raises ConfigError for a folder without a config.json, or with one that is not supported."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", param="model")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json: is it a model folder?", param="model")
    raw = read_json(folder / "config.json")
    if set(raw.get("architectures") or ()) & set(ARCHITECTURES):
        return ModelConfig.parse(raw)
    from workers.engine.models.transformers_config import read_transformers_config  # noqa: PLC0415  takes 2 s

    return read_transformers_config(folder, raw)


def read_eos_token_ids(folder: Path, config: DecoderConfig) -> frozenset[int]:
    """generation_config.json's end-of-text tokens, else config.json's."""
    path = folder / "generation_config.json"
    found = token_ids(read_json(path).get("eos_token_id")) if path.is_file() else ()
    return frozenset(found or config.eos_token_ids)


def fingerprint(folder: Path, device: torch.device, *parts: str) -> str:
    """The same for the same weights, torch, kind of device and `parts`: a hash of config.json and of each file's
    size and head.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    digest = hashlib.blake2b(repr((PROTOCOL_VERSION, torch.__version__, kind, parts)).encode(), digest_size=6)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(repr((path.name, path.stat().st_size)).encode() + file.read(HEAD))
    return f"fp_{digest.hexdigest()}"


def load_model(
    folder: Path,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    kernels: Kernels,
    progress: Progress,
) -> Decoder:
    """Raises ConfigError where tensors are missing, left over or of another shape than config.json says."""
    if not isinstance(config, ModelConfig):
        from workers.engine.models.transformers_config import load_transformers  # noqa: PLC0415  takes 2 s

        return load_transformers(folder, config, dtype=dtype, device=device, kernels=kernels)
    reader = _WeightReader(Checkpoint(folder), config, dtype, device, kernels)
    layers = []
    for index in range(config.num_layers):
        layers.append(reader.layer(index))
        progress((index + 1) / (config.num_layers + 1))
    embedding = reader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    head = (
        embedding
        if config.tie_word_embeddings
        else reader.tensor("lm_head.weight", config.vocab_size, config.hidden_size)
    )
    weights = LlamaWeights(
        embedding,
        tuple(layers),
        reader.tensor("model.norm.weight", config.hidden_size),
        kernels.linear([head], None, keep=True),
    )
    reader.refuse_leftovers()
    cos, sin = (table.to(device) for table in rope_table(config.rope, config.head_dim, max_model_len))
    layout = HeadLayout(config.num_heads, config.num_kv_heads, config.head_dim, cos, sin, config.norm_eps)
    progress(1.0)
    return Llama(config, weights, layout, kernels)


class Checkpoint:
    """Tensors by name over all safetensors files of a folder; remembers which were taken."""

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
        self.untaken = set(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def take(self, name: str) -> Tensor:
        if name not in self._where:
            raise ConfigError(f"{self._folder}: the checkpoint has no tensor {name}")
        self.untaken.discard(name)
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def _file_names(self) -> list[str]:
        index = self._folder / "model.safetensors.index.json"
        if not index.is_file():
            if not (self._folder / "model.safetensors").is_file():
                raise ConfigError(f"{self._folder} has no model.safetensors (other formats are not read)")
            return ["model.safetensors"]
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ConfigError(f"{index} points outside its folder: {outside[0]}")
        return names


class _WeightReader:
    """Takes a checkpoint's tensors in the model's shapes, dtype and device, fused where the model wants them
    fused.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._device = device
        self._kernels = kernels

    def tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._checkpoint.take(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"tensor {name} has shape {tuple(tensor.shape)}; config.json implies {shape}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ConfigError(f"tensor {name} is {tensor.dtype}; only float32, bfloat16 and float16 are read")
        return tensor.to(self._device, self._dtype)

    def layer(self, index: int) -> LayerWeights:
        c, prefix = self._config, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        qk_norms = None
        if c.qk_norm:
            qk_norms = (
                self.tensor(f"{attention}.q_norm.weight", c.head_dim),
                self.tensor(f"{attention}.k_norm.weight", c.head_dim),
            )
        return LayerWeights(
            input_norm=self.tensor(f"{prefix}.input_layernorm.weight", c.hidden_size),
            qkv=self._linear(attention, {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}, c.hidden_size),
            qk_norms=qk_norms,
            output=self._linear(attention, {"o_proj": c.hidden_size}, heads),
            mlp_norm=self.tensor(f"{prefix}.post_attention_layernorm.weight", c.hidden_size),
            gate_up=self._linear(
                mlp, {"gate_proj": c.intermediate_size, "up_proj": c.intermediate_size}, c.hidden_size
            ),
            down=self._linear(mlp, {"down_proj": c.hidden_size}, c.intermediate_size),
        )

    def refuse_leftovers(self) -> None:
        """A tensor that the model has no use for means that the model is not what it was taken for."""
        known = {"lm_head.weight"} if self._config.tie_word_embeddings else set()
        left = {name for name in self._checkpoint.untaken - known if not name.endswith("rotary_emb.inv_freq")}
        if left:
            raise ConfigError(
                f"the checkpoint has tensors that its architecture does not: {', '.join(sorted(left)[:3])}"
            )

    def _linear(self, prefix: str, parts: dict[str, int], size: int) -> Linear:
        """One product for several matrices that read the same input, with their biases where there are any."""
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
    """One of a model's files. Raises ConfigError where it holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return value
