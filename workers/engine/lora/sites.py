"""The linear layers of a model that adapters can change, and the rows of the current step that have adapters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.lora.weights import AdapterWeights
from workers.engine.quantization.interface import Linear

Rows = slice | Tensor


@dataclass(frozen=True)
class Module:
    """A matrix of the model: its part of a fused layer's outputs, and its shape.

    Attributes:
        site: name of the fused layer, which is that of its first matrix.
        start: number of its first output in the fused layer.
    """

    site: str
    start: int
    outputs: int
    inputs: int


class AdapterSites:
    """The layers of one model.

    Attributes:
        modules: matrices by name.
        widths: number of outputs of each fused layer.
        groups: the adapters of the current step, each with its rows.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.widths: dict[str, int] = {}
        self.groups: tuple[tuple[Rows, AdapterWeights], ...] = ()

    def wrap(self, parts: Mapping[str, int], inputs: int, layer: Linear) -> Linear:
        """Return the layer of the matrices `parts`, with their numbers of outputs, that computes adapters too.

        Experts of a mixture are returned as they are: their rows are not those of the step.
        """
        names = list(parts)
        if any(".experts." in name for name in names):
            return layer
        start = 0
        for name, outputs in parts.items():
            self.modules[name] = Module(names[0], start, outputs, inputs)
            start += outputs
        self.widths[names[0]] = start
        return AdaptedLinear(layer, names[0], self)

    def select(self, sequences: Iterable[tuple[int, AdapterWeights | None]], device: torch.device) -> bool:
        """Take over the adapters of a step, given the number of rows and the adapter of each of its sequences.

        Return whether it has any.
        """
        spans: dict[AdapterWeights, list[tuple[int, int]]] = {}
        start = 0
        for rows, adapter in sequences:
            end = start + rows
            if adapter is not None:
                spans.setdefault(adapter, []).append((start, end))
            start = end
        self.groups = tuple((_rows(found, device), adapter) for adapter, found in spans.items())
        return bool(spans)


class AdaptedLinear:
    """Linear layer with the products of the adapters of a step added to their rows."""

    def __init__(self, base: Linear, site: str, sites: AdapterSites) -> None:
        self._base = base
        self._site = site
        self._sites = sites

    def __call__(self, x: Tensor) -> Tensor:
        out = self._base(x)
        for rows, adapter in self._sites.groups:
            delta = adapter.deltas.get(self._site)
            if delta is None:
                continue
            if isinstance(rows, slice):
                out[rows].add_(delta(x[rows]))
            else:
                out.index_add_(0, rows, delta(x.index_select(0, rows)))
        return out


def _rows(spans: list[tuple[int, int]], device: torch.device) -> Rows:
    """Return the rows of some spans: as a slice if they are adjacent."""
    if all(end == start for (_, end), (start, _) in itertools.pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.cat([torch.arange(*span) for span in spans]).to(device)
