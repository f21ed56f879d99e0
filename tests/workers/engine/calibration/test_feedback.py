"""Rounding with error feedback."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.engine.calibration.feedback import damped, factorize, round_with_feedback
from workers.engine.quantization.grouped_weight import quantize_groups


def correlated(rows: int, inputs: int) -> Tensor:
    """Return random rows whose inputs depend on each other."""
    torch.manual_seed(6)
    return torch.randn(rows, inputs) @ torch.randn(inputs, inputs) * torch.rand(inputs)


@pytest.mark.parametrize("size", [1, 7, 64, 65, 150])
def test_factor_reproduces_the_moments(size: int) -> None:
    x = correlated(300, size)
    moments = damped(x.T @ x)
    factor, diagonal = factorize(moments, linear)
    assert torch.equal(factor, factor.triu(1))
    whole = (factor + torch.eye(size)).double()
    assert (diagonal > 0).all()
    torch.testing.assert_close(whole * diagonal @ whole.T, moments.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [96, 70])
def test_outputs_are_closer_than_with_the_nearest_integers(inputs: int) -> None:
    """Also for inputs that do not fill their last group."""
    x = correlated(400, inputs)
    weight = torch.randn(40, inputs) * 0.02
    found = round_with_feedback(weight, x.T @ x, 16, linear)
    nearest = quantize_groups(weight, 4, 16, narrow=True)
    lost, lost_by_nearest = ((x @ (each.dequantize() - weight).T).square().mean() for each in (found, nearest))
    assert lost < 0.4 * lost_by_nearest
    assert (found.inputs, found.codes.shape, found.codes.dtype) == (
        inputs,
        (40, inputs + -inputs % 16),
        torch.uint8,
    )
    assert found.codes.max() <= 15


def test_scales_and_zeros_fit_the_integers() -> None:
    """Without rows, where all inputs count alike; equal weights stay as they are."""
    torch.manual_seed(6)
    weight = torch.randn(9, 64)
    weight[3, :16], weight[4, 16:32], weight[5] = -2, 0, 0
    nearest = quantize_groups(weight, 4, 16, narrow=True).dequantize()
    found = round_with_feedback(weight, torch.zeros(64, 64), 16, linear).dequantize()
    lost, lost_by_nearest = ((each - weight).square().sum(-1) for each in (found, nearest))
    assert (lost[:5] < lost_by_nearest[:5]).all()
    assert (found[3, :16] + 2).abs().max() < 0.01
    assert not found[4, 16:32].any()
    assert not found[5].any()
