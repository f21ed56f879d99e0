"""The linear layers of a model that adapters can change, and the rows of the current step that have adapters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.lora.weights import AdapterWeights
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.low_rank import RowProducts, Rows

AddProducts = Callable[[Tensor, Tensor, Tensor, RowProducts], None]


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

    Args:
        add_products: adds products to rows; see `Kernels.add_products`.

    Attributes:
        modules: matrices by name.
        active: the current step has adapters.
    """

    def __init__(self, add_products: AddProducts) -> None:
        self._add_products = add_products
        self.modules: dict[str, Module] = {}
        self.active = False
        self._groups: tuple[tuple[Rows, AdapterWeights], ...] = ()  # of the current step
        self._numbers = torch.empty(0, dtype=torch.int64)  # of their rows

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
        return AdaptedLinear(layer, names[0], self)

    @staticmethod
    def base_of(layer: Linear) -> Linear:
        """Return a layer without adapters."""
        return layer.base if isinstance(layer, AdaptedLinear) else layer

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
        groups, numbers = [], list[int]()
        for adapter, found in spans.items():
            first = len(numbers)
            for span in found:
                numbers += range(*span)
            is_whole = all(end == start for (_, end), (start, _) in itertools.pairwise(found))
            place = slice(found[0][0], found[-1][1]) if is_whole else None
            groups.append((Rows(first, len(numbers) - first, place), adapter))
        self._groups, self.active = tuple(groups), bool(groups)
        if groups:
            self._numbers = torch.tensor(numbers, device=device)
        return self.active

    def add(self, x: Tensor, out: Tensor, site: str) -> None:
        """Add the products of the step's adapters for a fused layer to its output."""
        products = [(rows, product) for rows, adapter in self._groups for product in adapter.products.get(site, ())]
        if products:
            self._add_products(x, out, self._numbers, products)


class AdaptedLinear:
    """Linear layer with the products of the adapters of a step added to their rows.

    Attributes:
        base: the layer without adapters.
    """

    def __init__(self, base: Linear, site: str, sites: AdapterSites) -> None:
        self.base = base
        self._site = site
        self._sites = sites

    def __call__(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if self._sites.active:
            self._sites.add(x, out, self._site)
        return out
