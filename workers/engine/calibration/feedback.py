"""Rounding with error feedback: the weights of an input make up for the rounding of the inputs before it.

This is LDLQ (https://arxiv.org/abs/2307.13304), which finds the integers of GPTQ (https://arxiv.org/abs/2210.17323)
without an inverse. Then, group by group, scale and zero are fitted to the integers by least squares, and each
integer is replaced by the best one for all others (coordinate descent, as in https://arxiv.org/abs/2309.01885).

All operations are elementwise or a `Product`, so the integers are the same on all machines on which the products
are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.engine.quantization.grouped_weight import Grid, GroupedWeight, fit_grid

Product = Callable[[Tensor, Tensor], Tensor]  # [T, n] and [out, n] to [T, out]

DAMPING = 0.03  # of the mean square of all inputs, added to that of each: a short text says little of rare inputs
SHRUNK = tuple(1 - step / 16 for step in range(6))  # ranges of a group that are tried, in parts of the whole one
PASSES = 2  # of coordinate descent
BLOCK = 64  # inputs that are eliminated between two products
MIDDLE = 8  # of the integers of 4 bits: sums are smaller around it


def round_with_feedback(weight: Tensor, moments: Tensor, group: int, product: Product) -> GroupedWeight:
    """Round a weight [out, in] to 4 bits in groups.

    Args:
        moments: [in, in], the sum over all rows of the products of two inputs.
    """
    inputs = weight.shape[1]
    missing = -inputs % group
    weight, moments = pad(weight.float(), (0, missing)), damped(pad(moments, (0, missing, 0, missing)))
    feedback, variances = factorize(moments, product)
    factors = fit_grid(weight.view(len(weight), -1, group), 4, narrow=True).factors
    codes, errors = torch.empty_like(weight), torch.zeros_like(weight)
    grids: list[Grid] = []
    for begin in range(0, weight.shape[1], group):
        place = slice(begin, begin + group)
        target = weight[:, place].clone()
        if begin:
            target += product(errors[:, :begin].contiguous(), feedback[:begin, place].T.contiguous())
        grids.append(_best_grid(target[:, None], variances[place], factors))
        codes[:, place] = _round_group(grids[-1], weight[:, place], target, feedback[place, place])
        errors[:, place] = weight[:, place] - _values(grids[-1], codes[:, place])
    for _ in range(PASSES):
        _descend(grids, codes, errors, moments, product)
    scales = torch.cat([each.scales for each in grids], 1)
    zeros = torch.cat([each.zeros for each in grids], 1)
    return GroupedWeight(4, group, codes.to(torch.uint8), scales, zeros, factors, inputs, narrow=True)


def damped(moments: Tensor) -> Tensor:
    """Return moments that are positive definite, with a mean diagonal of about 1."""
    mean = math.fsum(moments.diagonal().tolist()) / len(moments)
    if mean <= 0:  # no row has an input
        return torch.eye(len(moments))
    return moments / mean + DAMPING * torch.eye(len(moments))


def factorize(moments: Tensor, product: Product) -> tuple[Tensor, Tensor]:
    """Return U, strictly upper triangular, and d with `moments` = (I + U) diag(d) (I + U)^T."""
    size = len(moments)
    rest, factor, diagonal = moments.clone(), torch.zeros_like(moments), torch.empty(size)
    for begin in reversed(range(0, size, BLOCK)):
        end = min(begin + BLOCK, size)
        panel = rest[:end, begin:end].clone()
        scaled = torch.zeros_like(panel)  # the factor times D
        for column in reversed(range(end - begin)):
            at = begin + column
            scaled[:at, column] = panel[:at, column]
            diagonal[at] = panel[at, column]
            factor[:at, at] = panel[:at, column] / panel[at, column]
            panel[:at, :column] -= factor[:at, at, None] * scaled[begin:at, column]
        if begin:
            columns = factor[:begin, begin:end].contiguous()
            rest[:begin, :begin] -= product(scaled[:begin].contiguous(), columns)
    return factor, diagonal


def _best_grid(target: Tensor, importance: Tensor, factors: Tensor) -> Grid:
    """Return the grid of a group [out, 1, group] with the least error, in which inputs count by `importance`."""
    best, least = _grid(target, factors), torch.full(target.shape[:2], torch.inf)
    for shrunk in SHRUNK:
        grid = _grid(target, factors, shrunk)
        lost = grid.values(grid.codes(target)) - target
        error = _sum_in_order(lost * lost * importance)
        best, least = best.where(least <= error, grid), torch.minimum(least, error)
    return best


def _grid(target: Tensor, factors: Tensor, shrunk: float = 1.0) -> Grid:
    return fit_grid(target, 4, narrow=True, factors=factors, shrunk=shrunk)


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
        found[:, index] = _codes(grid, target[:, index, None])[:, 0]
        error = weight[:, index] - _values(grid, found[:, index, None])[:, 0]
        target[:, index + 1 :] += error[:, None] * feedback[index, index + 1 :]
    return found


def _descend(grids: list[Grid], codes: Tensor, errors: Tensor, moments: Tensor, product: Product) -> None:
    """Improve the grid and the integers of each group, with those of the other groups as they are.

    Args:
        codes: [out, in]; overwritten.
        errors: [out, in], the weight minus its rounded values; overwritten.
    """
    group = codes.shape[1] // len(grids)
    slopes = product(errors, moments)
    for number, grid in enumerate(grids):
        place = slice(number * group, (number + 1) * group)
        within = moments[place, place].contiguous()
        found, old = codes[:, place], _values(grid, codes[:, place])
        wanted = slopes[:, place] + product(old, within)  # if no other group changes
        fitted = grids[number] = _fit_to_codes(grid, found, wanted, within, product)
        _improve_codes(fitted, found, wanted, within, product)
        change = _values(fitted, found) - old
        errors[:, place] -= change
        slopes -= product(change, moments[:, place].contiguous())


def _fit_to_codes(grid: Grid, codes: Tensor, wanted: Tensor, within: Tensor, product: Product) -> Grid:
    """Return the grid in which the values of `codes`, times `within`, are closest to `wanted`."""
    centered = codes - MIDDLE
    weighted = product(centered.contiguous(), within)
    squares, linear = _sum_in_order(weighted * centered), _sum_in_order(weighted)
    ones = _sum_in_order(_sum_in_order(within))
    along, across = _sum_in_order(wanted * centered), _sum_in_order(wanted)
    steps = (along * ones - across * linear) / (squares * ones - linear * linear)
    fitted = grid.with_steps(steps[:, None])
    taken = fitted.steps[:, 0]
    fitted = fitted.with_zeros((MIDDLE - (across - taken * linear) / (taken * ones))[:, None])
    is_fit = (steps > 0) & (steps < torch.inf)  # integers that are all alike fit any grid
    return fitted.where(is_fit[:, None], grid)


def _improve_codes(grid: Grid, codes: Tensor, wanted: Tensor, within: Tensor, product: Product) -> None:
    """Replace each integer of a group, [out, group], by the best one for the others."""
    values = _values(grid, codes)
    rest = wanted - product(values, within)
    for index in range(codes.shape[1]):
        best = values[:, index] + rest[:, index] / within[index, index]
        codes[:, index] = _codes(grid, best[:, None])[:, 0]
        change = _values(grid, codes[:, index, None])[:, 0] - values[:, index]
        rest[:, index + 1 :] -= change[:, None] * within[index, index + 1 :]


def _codes(grid: Grid, values: Tensor) -> Tensor:
    """Return the integers of the nearest values of one group, [out, n]."""
    return grid.codes(values[:, None])[:, 0]


def _values(grid: Grid, codes: Tensor) -> Tensor:
    """Return the values of integers of one group, [out, n]."""
    return grid.values(codes[:, None])[:, 0]
