"""Rounding with error feedback: the weights of an input make up for the rounding of the inputs before it.

This is LDLQ (https://arxiv.org/abs/2307.13304), which finds the integers of GPTQ (https://arxiv.org/abs/2210.17323)
without an inverse. All operations are elementwise or a `Product`, so the integers are the same on all machines on
which the products are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.engine.quantization.grouped_weight import Grid, GroupedWeight, fit_grid

Product = Callable[[Tensor, Tensor], Tensor]  # [T, n] and [out, n] to [T, out]

DAMPING = 0.01  # of the mean square of all inputs, added to that of each: a short text says little of rare inputs
SHRUNK = tuple(1 - step / 50 for step in range(16))  # ranges of a group that are tried, in parts of the whole one
BLOCK = 64  # inputs that are eliminated between two products


def round_with_feedback(weight: Tensor, moments: Tensor, group: int, product: Product) -> GroupedWeight:
    """Round a weight [out, in] to 4 bits in groups.

    Args:
        moments: [in, in], the sum over all rows of the products of two inputs.
    """
    outputs, inputs = weight.shape
    missing = -inputs % group
    weight, moments = pad(weight.float(), (0, missing)), pad(moments, (0, missing, 0, missing))
    importance = moments.diagonal().view(-1, group)
    feedback = factorize(damped(moments), product)
    factors = fit_grid(weight.view(outputs, -1, group), 4).factors
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales, zeros = (torch.empty(len(importance), outputs, dtype=torch.float16) for _ in range(2))
    errors = torch.zeros_like(weight)
    for number, begin in enumerate(range(0, weight.shape[1], group)):
        place = slice(begin, begin + group)
        target = weight[:, place].clone()
        if begin:
            target += product(errors[:, :begin].contiguous(), feedback[:begin, place].T.contiguous())
        grid = _best_grid(target[:, None], importance[number], factors)
        found = _round_group(grid, weight[:, place], target, feedback[place, place])
        errors[:, place] = weight[:, place] - grid.values(found[:, None])[:, 0]
        codes[:, place] = found.to(torch.uint8)
        scales[number], zeros[number] = grid.scales[:, 0], grid.zeros[:, 0]
    return GroupedWeight(4, group, codes, scales.T.contiguous(), zeros.T.contiguous(), factors, inputs)


def damped(moments: Tensor) -> Tensor:
    """Return moments that are positive definite, with a mean diagonal of about 1."""
    mean = math.fsum(moments.diagonal().tolist()) / len(moments)
    if mean <= 0:  # no row has an input
        return torch.eye(len(moments))
    return moments / mean + DAMPING * torch.eye(len(moments))


def factorize(moments: Tensor, product: Product) -> Tensor:
    """Return U, strictly upper triangular, with `moments` = (I + U) D (I + U)^T for a diagonal D."""
    size = len(moments)
    rest, factor = moments.clone(), torch.zeros_like(moments)
    for begin in reversed(range(0, size, BLOCK)):
        end = min(begin + BLOCK, size)
        panel = rest[:end, begin:end].clone()
        scaled = torch.zeros_like(panel)  # the factor times D
        for column in reversed(range(end - begin)):
            at = begin + column
            scaled[:at, column] = panel[:at, column]
            factor[:at, at] = panel[:at, column] / panel[at, column]
            panel[:at, :column] -= factor[:at, at, None] * scaled[begin:at, column]
        if begin:
            columns = factor[:begin, begin:end].contiguous()
            rest[:begin, :begin] -= product(scaled[:begin].contiguous(), columns)
    return factor


def _best_grid(target: Tensor, importance: Tensor, factors: Tensor) -> Grid:
    """Return the grid of a group [out, 1, group] with the least error, in which inputs count by `importance`."""
    best, least = fit_grid(target, 4, factors), torch.full(target.shape[:2], torch.inf)
    for shrunk in SHRUNK:
        grid = fit_grid(target, 4, factors, shrunk)
        lost = grid.values(grid.codes(target)) - target
        error = _sum_in_order(lost * lost * importance)
        best, least = best.where(least <= error, grid), torch.minimum(least, error)
    return best


def _sum_in_order(values: Tensor) -> Tensor:
    """Sum over the last dimension. torch's own sums depend on the width of vectors."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def _round_group(grid: Grid, weight: Tensor, target: Tensor, feedback: Tensor) -> Tensor:
    """Return the integers of a group in float32, [out, group], rounded input by input; `target` is overwritten."""
    found = torch.empty_like(target)
    for index in range(target.shape[1]):
        codes = grid.codes(target[:, index, None, None])
        found[:, index] = codes[:, 0, 0]
        error = weight[:, index] - grid.values(codes)[:, 0, 0]
        target[:, index + 1 :] += error[:, None] * feedback[index, index + 1 :]
    return found
