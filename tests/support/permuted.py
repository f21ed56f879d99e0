"""A Llama that computes the same as another, with its channels in another order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def permute_channels(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights with hidden, inner and value channels permuted, the latter in each layer anew.

    Groups of adjacent inputs then have other members: to a quantizer, weights that were rounded in groups are like
    those of any other model.
    """
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randperm(config["hidden_size"], generator=draw)
    found = {}
    for name, tensor in tensors.items():  # norms and embeddings, and layers for now
        found[name] = tensor[..., hidden] if tensor.shape[-1] == len(hidden) else tensor
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        inner = torch.randperm(config["intermediate_size"], generator=draw)
        values, outputs = _value_order(config, draw)
        for part, rows, columns in (
            ("self_attn.v_proj", values, hidden),
            ("self_attn.o_proj", hidden, outputs),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            name = f"{prefix}.{part}.weight"
            found[name] = tensors[name][rows][:, columns]
    return found


def _value_order(config: dict[str, Any], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return orders of a layer's values and of the attention's outputs, which are values of several heads."""
    heads, dim = config["num_key_value_heads"], config["head_dim"]
    within = torch.stack([torch.randperm(dim, generator=draw) for _ in range(heads)])
    values = within + dim * torch.arange(heads)[:, None]
    queries = config["num_attention_heads"]
    outputs = within.repeat_interleave(queries // heads, 0) + dim * torch.arange(queries)[:, None]
    return values.flatten(), outputs.flatten()
