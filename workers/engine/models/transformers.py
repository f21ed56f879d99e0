"""Decoder that runs transformers' code of any other architecture over the paged cache.

It is slower than a decoder of Headrace's own, and the same to the scheduler. transformers' code sees the rows of a
step as one flat sequence; only their positions and the attention function, which is replaced, tell sequences apart.
An architecture that mixes rows elsewhere, or adds something to attention, is refused when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shared.errors import ConfigError
from workers.engine.execution.paged_attention import LayerCache, make_layer_caches, write_cache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import Kernels
from workers.engine.models.decoder import DecoderConfig, never
from workers.engine.quantization.interface import Linear

ATTENTION = "headrace_paged"  # name under which transformers knows the attention function
# exceptions that transformers' code raises for unsupported input
TRANSFORMERS_ERRORS = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_IGNORED_ARGUMENTS = frozenset(
    {"dropout", "sliding_window", "position_ids", "use_cache", "is_causal", "output_attentions"}
)
_CHECK_BLOCK_TOKENS = 4
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # relative to the largest logit


class _Interrupted(Exception):
    """Raised to end a forward pass between layers."""


@dataclass(frozen=True)
class PagedStep:
    """Inputs and caches of one step, for the attention of each layer."""

    inputs: StepInputs
    caches: list[LayerCache]
    kernels: Kernels
    interrupted: Callable[[], bool]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend, with scores scaled by dim ** -0.5. All tensors are [T, heads, dim]."""
        if self.interrupted():
            raise _Interrupted
        cache = self.caches[layer]
        write_cache(cache, self.inputs, keys, values)
        return self.kernels.attention(queries.contiguous(), cache, self.inputs).view(queries.shape)


@dataclass
class AttentionProbe:
    """Stand-in for a step of a model without weights: it records the inputs to the attention of each layer."""

    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)  # kv_heads, dim
    windows: set[int] = field(default_factory=set)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Record a layer. Raises ConfigError for attention that the paged cache does not compute."""
        if layer in self.shapes or keys.shape != values.shape or keys.shape[2] != queries.shape[2]:
            raise ConfigError("keys and values of its attention have different shapes, or a layer attends twice")
        if queries.shape[1] % keys.shape[1]:
            raise ConfigError(f"{queries.shape[1]} heads cannot share {keys.shape[1]} key-value heads")
        self.shapes[layer] = (keys.shape[1], keys.shape[2])
        return queries

    def examine(self, module: nn.Module, extras: dict[str, Any]) -> None:
        """Raise ConfigError for arguments that the attention function does not support."""
        unknown = [name for name, value in extras.items() if value is not None and name not in _IGNORED_ARGUMENTS]
        if unknown:
            raise ConfigError(f"its attention uses {', '.join(sorted(unknown))}")
        if not getattr(module, "is_causal", True) or extras.get("is_causal") is False:
            raise ConfigError("its attention is not causal")
        if extras.get("sliding_window") is not None:
            self.windows.add(int(extras["sliding_window"]))


def paged_attention_forward(  # noqa: PLR0917  transformers passes them by position
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    *,
    paged: PagedStep | AttentionProbe,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Attention function with transformers' signature: [1, heads, T, dim] to [1, T, heads, dim]."""
    if isinstance(paged, AttentionProbe):
        paged.examine(module, {**extras, "attention_mask": attention_mask})
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    default = queries.shape[-1] ** -0.5
    if scaling is not None and scaling != default:
        queries = queries * (scaling / default)
    return paged.attend(int(module.layer_idx), queries, keys, values)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, paged_attention_forward)


class _RowsLinear(nn.Module):
    """Replacement of a linear layer by the kernels' one, in which a row has the same bits in any batch."""

    def __init__(self, product: Linear) -> None:
        super().__init__()
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        out = self._product(x.reshape(-1, x.shape[-1]).contiguous())
        return out.view(*x.shape[:-1], out.shape[-1])


class TransformersDecoder:
    """Decoder that runs a transformers model; see the module and `Decoder`.

    Args:
        model: loaded with the attention ATTENTION; its linear layers are replaced.

    Raises:
        ConfigError: over the paged cache, the model computes something else than with its own attention.
    """

    def __init__(self, config: DecoderConfig, model: PreTrainedModel, kernels: Kernels) -> None:
        self.config = config
        self._model = model.eval().requires_grad_(False)
        self._kernels = kernels
        model.config.pad_token_id = None  # otherwise each step searches for it, to warn of a missing mask
        _replace_linears(model, kernels)
        self._check()

    @property
    def embedding(self) -> Tensor:
        weight: Tensor = self._model.get_input_embeddings().weight
        return weight

    @property
    def recordable(self) -> bool:
        return self._kernels.recordable

    def forward(
        self, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool] = never
    ) -> Tensor | None:
        """Compute a step; see `Decoder`."""
        try:
            return run(self._model, step, PagedStep(step, caches, self._kernels, interrupted))
        except _Interrupted:
            return None

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare two sequences, batched and in two chunks, with transformers' own attention on each alone."""
        first, second = list(range(7)), list(range(8, 13))
        c, device = self.config, self.embedding.device
        shape = (4, c.num_kv_heads, _CHECK_BLOCK_TOKENS, c.head_dim)
        caches = make_layer_caches(c.num_layers, shape, self.embedding.dtype, device)
        try:
            self.forward(_check_step([(first, 0, 3), (second, 0, 4)], device), caches)
            ours = self.forward(_check_step([(first, 3, 7), (second, 4, 5)], device), caches)
            assert ours is not None
            self._model.set_attn_implementation("eager")
            both = [self._model(torch.tensor([t], device=device), use_cache=False) for t in (first, second)]
            self._model.set_attn_implementation(ATTENTION)
        except TRANSFORMERS_ERRORS as error:
            raise unsupported(c.architecture, f"its code fails on a flat batch ({error})") from error
        theirs = torch.stack([output.logits[0, -1] for output in both])
        difference, scale = (ours - theirs).abs().max(), theirs.abs().max()
        if not difference <= scale * _TOLERANCE[self.embedding.dtype]:
            raise unsupported(c.architecture, "over the paged cache, it computes something else")


def run(model: PreTrainedModel, step: StepInputs, paged: PagedStep | AttentionProbe) -> Tensor:
    """Compute the logits [R, vocab] of one step."""
    output = model(
        step.tokens[None],
        position_ids=step.positions[None],
        use_cache=False,
        logits_to_keep=step.sample_rows,
        paged=paged,
    )
    logits: Tensor = output.logits[0]
    if len(logits) != len(step.sample_rows):
        raise ValueError("it computes logits for all rows")
    return logits


def unsupported(architecture: str, reason: str) -> ConfigError:
    """Return the error for an architecture that is not supported."""
    return ConfigError(f"architecture {architecture} is not supported: {reason}", param="model")


def _replace_linears(model: PreTrainedModel, kernels: Kernels) -> None:
    """Replace linear layers one by one, so that at most one layer's weights exist twice.

    transformers' code may hold on to results, so they are not overwritten (`keep`).
    """
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in (nn.Linear, Conv1D):
                continue
            old: Any = child
            weight = old.weight if type(old) is nn.Linear else old.weight.T
            bias = None if old.bias is None else old.bias.detach()
            product = kernels.linear([weight.detach()], bias, keep=True, head=child is head)
            setattr(parent, name, _RowsLinear(product))


def _check_step(parts: list[tuple[list[int], int, int]], device: torch.device) -> StepInputs:
    """Return inputs for tokens begin … end - 1 of two sequences, one in blocks 0 and 1, one in 2 and 3."""
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    ends = []
    for index, (sequence, begin, end) in enumerate(parts):
        tokens += sequence[begin:end]
        positions += range(begin, end)
        sequences += [index] * (end - begin)
        ends.append(len(tokens))

    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, device=device)

    return StepInputs(
        tokens=tensor(tokens),
        positions=tensor(positions),
        sequences=tensor(sequences),
        block_tables=tensor([[0, 1], [2, 3]]),
        sample_rows=tensor([end - 1 for end in ends]),
    )


def probe_step() -> StepInputs:
    """Return inputs of three rows of two sequences, without storage."""
    return _check_step([(list(range(2)), 0, 2), (list(range(2)), 0, 1)], torch.device("meta"))
