"""Checkpoints of a tiny model with matrices stored as GPTQ, AWQ, FP8 and compressed-tensors store them.

Integers are packed one by one, by the formats' descriptions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.checkpoints import byte_tokenizer

# of a layer's name and weight: the tensors that are stored, and the weight that they mean
Store = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def save_stored(folder: Path, model: PreTrainedModel, store: Store, quantization: dict[str, Any]) -> Path:
    """Save a model with the matrices of its layers stored by `store`, and give it the weights that these mean."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                found, meaning = store(name.removesuffix(".weight"), parameter)
                tensors |= found
                parameter.copy_(meaning)
            else:
                tensors[name] = parameter.clone()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    byte_tokenizer().save_pretrained(folder)
    return folder


def round_groups(weight: Tensor, bits: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes [out, in], zeros and scales [out, groups] of random rounding to groups, and their meaning."""
    groups = int(index.max()) + 1
    scales = (torch.rand(len(weight), groups) * 0.1 + 0.02).half().float()
    zeros = torch.randint(1, 2**bits - 1, (len(weight), groups))
    codes = (weight / scales[:, index] + zeros[:, index]).round().clamp(0, 2**bits - 1).int()
    return codes, zeros.int(), scales, scales[:, index] * (codes - zeros[:, index])


def pack_words(rows: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Return [n, m] integers as [n, m * bits / 32] words, with that of place i at bit `bits` * i."""
    per_word = 32 // bits
    words = torch.zeros(len(rows), -(-rows.shape[1] // per_word), dtype=torch.int64)
    for column in range(rows.shape[1]):
        place = column % per_word if order is None else order.index(column % per_word)
        words[:, column // per_word] |= rows[:, column].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def gptq(bits: int, group: int, *, scattered: bool = False, version: int = 1) -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = weight.shape[1]
        index = torch.arange(inputs) // (inputs if group == -1 else group)
        if scattered:  # alike for layers of the same input
            index = index[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
        codes, zeros, scales, meaning = round_groups(weight, bits, index)
        stored_zeros = (zeros - int(version == 1)).T
        return {
            f"{name}.qweight": pack_words(codes, bits).T,
            f"{name}.qzeros": pack_words(stored_zeros, bits),
            f"{name}.scales": scales.T.half(),
            f"{name}.g_idx": index.int(),
        }, meaning

    return store


def awq(group: int) -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        codes, zeros, scales, meaning = round_groups(weight, 4, torch.arange(weight.shape[1]) // group)
        return {
            f"{name}.qweight": pack_words(codes.T, 4, AWQ_ORDER),
            f"{name}.qzeros": pack_words(zeros.T, 4, AWQ_ORDER),
            f"{name}.scales": scales.T.half(),
        }, meaning

    return store


def fp8(block: int | None, scale_name: str = "weight_scale") -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        outputs, inputs = weight.shape
        stored = (weight / 0.01).to(torch.float8_e4m3fn)
        if block is None:
            return {
                f"{name}.weight": stored,
                f"{name}.{scale_name}": torch.tensor(0.01),
                f"{name}.input_scale": torch.tensor(1.0),
            }, stored.float() * 0.01
        scales = torch.rand(-(-outputs // block), -(-inputs // block)) * 0.01 + 0.005
        whole = torch.kron(scales, torch.ones(block, block))[:outputs, :inputs]
        return {f"{name}.weight": stored, f"{name}.{scale_name}": scales}, stored.float() * whole

    return store


def compressed(bits: int, group: int, *, packed: bool, zeros: bool = False) -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        outputs, inputs = weight.shape
        index = torch.arange(inputs) // (inputs if group == -1 else group)
        codes, zero, scales, meaning = round_groups(weight, bits, index)
        middle = 2 ** (bits - 1)
        if not zeros:
            zero = torch.full_like(zero, middle)
            meaning = scales[:, index] * (codes - middle)
        found = {f"{name}.weight_scale": scales, f"{name}.weight_shape": torch.tensor([outputs, inputs])}
        if not packed:
            return {f"{name}.weight": (codes - middle).to(torch.int8), f"{name}.weight_scale": scales}, meaning
        found[f"{name}.weight_packed"] = pack_words(codes, bits)
        if zeros:
            found[f"{name}.weight_zero_point"] = pack_words(zero.T, bits).T
        return found, meaning

    return store


def compressed_config(kind: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}
