"""Small PyTorch modules, exported and scripted."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn


class Affine(nn.Module):
    """Returns a linear layer's values of `x`, and their sums plus `bias`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.layer(x)
        return values, values.sum(dim=1) + bias[:, 0]


class Named(Affine):
    """Returns the values as a dict."""

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        values = self.layer(x)
        return {"values": values, "sums": values.sum(dim=1) + bias[:, 0]}


def affine(kind: type[Affine] = Affine) -> Affine:
    torch.manual_seed(0)
    return kind().eval()


def export(module: nn.Module, folder: Path, *, most: int | None = None, keywords: bool = False) -> Path:
    """Write a program with a free batch dimension into the folder of a version, and return the folder."""
    folder.mkdir(parents=True)
    rows = torch.export.Dim("rows", max=most)
    example = {"x": torch.zeros(2, 3), "bias": torch.zeros(2, 1)}
    program = torch.export.export(
        module,
        () if keywords else tuple(example.values()),
        example if keywords else None,
        dynamic_shapes={"x": {0: rows}, "bias": {0: rows}},
    )
    torch.export.save(program, folder / "model.pt2")
    return folder


def script(module: nn.Module, folder: Path) -> Path:
    """Write TorchScript into the folder of a version, and return the folder."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), folder / "model.pt")
    return folder
