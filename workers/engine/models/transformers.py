"""Any other decoder: transformers' own code of the architecture, with its attention turned to the paged cache.

Slower than a model of ours, and the same to the scheduler. The rows of a step are one flat sequence to that code;
what tells them apart is their position, and the attention function, which sees each row's own sequence only.
Whatever that code mixes between rows otherwise, or adds to attention, is refused when the model is loaded.
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
from workers.engine.execution.step_inputs import Span, StepInputs
from workers.engine.kernels import Kernels
from workers.engine.models.decoder import DecoderConfig, never
from workers.engine.quantization.interface import Linear

ATTENTION = "headrace_paged"  # the attention function's name among transformers'
# what its code may raise for an input that it does not take
FAILURES = (AttributeError, ImportError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_HARMLESS = frozenset({"dropout", "sliding_window", "position_ids", "use_cache", "is_causal", "output_attentions"})
_CHECK_BLOCK = 4  # tokens
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest logit


class _Interrupted(Exception):
    """Ends a forward pass between layers."""


@dataclass(frozen=True)
class PagedStep:
    """One step, as the attention of each layer sees it."""

    inputs: StepInputs
    caches: list[LayerCache]
    kernels: Kernels
    interrupted: Callable[[], bool]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[T, heads, dim] each; returns queries' shape, scaled by dim ** -0.5."""
        if self.interrupted():
            raise _Interrupted
        cache = self.caches[layer]
        write_cache(cache, self.inputs, keys, values)
        return self.kernels.attention(queries.contiguous(), cache, self.inputs).view(queries.shape)


@dataclass
class Census:
    """Stands in for a step where there are no weights: what the attention of each layer was given."""

    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)  # kv_heads, dim
    windows: set[int] = field(default_factory=set)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Raises ConfigError for attention that the paged cache does not compute."""
        if layer in self.shapes or keys.shape != values.shape or keys.shape[2] != queries.shape[2]:
            raise ConfigError("keys and values of its attention have unequal shapes, or a layer attends twice")
        if queries.shape[1] % keys.shape[1]:
            raise ConfigError(f"{queries.shape[1]} heads do not fit {keys.shape[1]} key-value heads")
        self.shapes[layer] = (keys.shape[1], keys.shape[2])
        return queries

    def examine(self, module: nn.Module, extras: dict[str, Any]) -> None:
        """Raises ConfigError for what the attention function would have to know, and does not."""
        odd = [name for name, value in extras.items() if value is not None and name not in _HARMLESS]
        if odd:
            raise ConfigError(f"its attention uses {', '.join(sorted(odd))}")
        if not getattr(module, "is_causal", True) or extras.get("is_causal") is False:
            raise ConfigError("its attention is not causal")
        if extras.get("sliding_window") is not None:
            self.windows.add(int(extras["sliding_window"]))


def paged_attention_forward(  # noqa: PLR0917  transformers passes them by place
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    *,
    paged: PagedStep | Census,
    **extras: Any,
) -> tuple[Tensor, None]:
    """transformers' signature of an attention function; [1, heads, T, dim] in, [1, T, heads, dim] out."""
    if isinstance(paged, Census):
        paged.examine(module, {**extras, "attention_mask": attention_mask})
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    usual = queries.shape[-1] ** -0.5
    if scaling is not None and scaling != usual:
        queries = queries * (scaling / usual)
    return paged.attend(int(module.layer_idx), queries, keys, values)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, paged_attention_forward)


class _RowsLinear(nn.Module):
    """A linear layer of the model's, in the kernels' form: a row has the same bits in any batch."""

    def __init__(self, product: Linear) -> None:
        super().__init__()
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        out = self._product(x.reshape(-1, x.shape[-1]).contiguous())
        return out.view(*x.shape[:-1], out.shape[-1])


class TransformersDecoder:
    """See the module.

    Args:
        model: loaded with the attention ATTENTION; its linear layers are replaced.

    Raises:
        ConfigError: over the paged cache it does not compute what it computes by itself.
    """

    def __init__(self, config: DecoderConfig, model: PreTrainedModel, kernels: Kernels) -> None:
        self.config = config
        self._model = model.eval().requires_grad_(False)
        self._kernels = kernels
        model.config.pad_token_id = None  # else each step looks for it, to warn of a missing mask
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
        """See `Decoder`."""
        try:
            return run(self._model, step, PagedStep(step, caches, self._kernels, interrupted))
        except _Interrupted:
            return None

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare two sequences, side by side and in two chunks, with transformers' own attention on each alone."""
        first, second = list(range(7)), list(range(8, 13))
        c, device = self.config, self.embedding.device
        shape = (4, c.num_kv_heads, _CHECK_BLOCK, c.head_dim)
        caches = make_layer_caches(c.num_layers, shape, self.embedding.dtype, device)
        try:
            self.forward(_check_step([(first, 0, 3), (second, 0, 4)], device), caches)
            mine = self.forward(_check_step([(first, 3, 7), (second, 4, 5)], device), caches)
            assert mine is not None
            self._model.set_attn_implementation("eager")
            both = [self._model(torch.tensor([t], device=device), use_cache=False) for t in (first, second)]
            self._model.set_attn_implementation(ATTENTION)
        except FAILURES as error:
            raise unsupported(c.architecture, f"its code fails on a flat batch ({error})") from error
        theirs = torch.stack([output.logits[0, -1] for output in both])
        difference, scale = (mine - theirs).abs().max(), theirs.abs().max()
        if not difference <= scale * _TOLERANCE[self.embedding.dtype]:
            raise unsupported(c.architecture, "over the paged cache it computes something else")


def run(model: PreTrainedModel, step: StepInputs, paged: PagedStep | Census) -> Tensor:
    """Logits [R, vocab] of one step."""
    output = model(
        step.tokens[None],
        position_ids=step.positions[None],
        use_cache=False,
        logits_to_keep=step.sample_rows,
        paged=paged,
    )
    logits: Tensor = output.logits[0]
    if len(logits) != len(step.sample_rows):
        raise ValueError("it computes the logits of all rows")
    return logits


def unsupported(architecture: str, reason: str) -> ConfigError:
    return ConfigError(f"architecture {architecture} is not supported: {reason}", param="model")


def _replace_linears(model: nn.Module, kernels: Kernels) -> None:
    """One by one, so that at most one layer's weights are there twice. Results are kept: who knows for how long."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in (nn.Linear, Conv1D):
                continue
            old: Any = child
            weight = old.weight if type(old) is nn.Linear else old.weight.T
            bias = None if old.bias is None else old.bias.detach()
            setattr(parent, name, _RowsLinear(kernels.linear([weight.detach()], bias, keep=True)))


def _check_step(parts: list[tuple[list[int], int, int]], device: torch.device) -> StepInputs:
    """Tokens begin … end - 1 of each sequence, the first in blocks 0 and 1, the second in 2 and 3."""
    tokens: list[int] = []
    positions: list[int] = []
    spans = []
    for sequence, begin, end in parts:
        spans.append(Span(len(tokens), end - begin, begin))
        tokens += sequence[begin:end]
        positions += range(begin, end)

    def put(values: Any) -> Tensor:
        return torch.tensor(values, device=device)

    return StepInputs(
        tokens=put(tokens),
        positions=put(positions),
        sequences=put([index for index, span in enumerate(spans) for _ in range(span.length)]),
        block_tables=put([[0, 1], [2, 3]]),
        sample_rows=put([span.start + span.length - 1 for span in spans]),
        spans=tuple(spans),
    )


def census_step() -> StepInputs:
    """Three rows of two sequences, without storage."""
    return _check_step([(list(range(2)), 0, 2), (list(range(2)), 0, 1)], torch.device("meta"))
