"""Rounding of a nearly balanced matrix onto the Birkhoff polytope."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.kernels.maps.layout import tokens_together


def round_to_doubly_stochastic(matrix: Tensor) -> Tensor:
    """Move a nonnegative ``[..., n, n]`` matrix onto the doubly stochastic matrices, exactly to rounding.

    Rows are scaled by ``min(1, 1/r)``, columns by ``min(1, 1/c)``, and the missing mass is put back as the
    rank-one matrix ``err_r err_cᵀ / ‖err_r‖₁``. Rows or columns of zeros are filled up.

    The gradient is bounded, and zero for cotangents that are constant along rows or along columns: sums do not move.
    Where the input is doubly stochastic to rounding, next to the kinks of the minima, it is the gradient of the
    orthogonal projection onto the matrices with these sums.

    float32 or float64; the result is a view with the tokens innermost in memory.

    Source: Altschuler, Weed and Rigollet, arXiv 1705.09634, Algorithm 2.
    """
    n = matrix.shape[-1]
    matrix = tokens_together(matrix)
    rounded = _round(matrix)
    row_error = 1 - matrix.sum(1, keepdim=True)
    column_error = 1 - matrix.sum(0, keepdim=True)
    projected = matrix + (row_error + column_error - row_error.mean(0, keepdim=True)) / n
    # Errors of this size are noise, which must not choose the branch of a minimum.
    noise = n * torch.finfo(matrix.dtype).eps
    off = torch.maximum(row_error.abs().amax(0, keepdim=True), column_error.abs().amax(1, keepdim=True))
    return torch.where(off > noise, rounded, _with_gradient_of(projected, rounded)).movedim((0, 1), (-2, -1))


def _round(matrix: Tensor) -> Tensor:
    matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    matrix = matrix / matrix.sum(0, keepdim=True).clamp(min=1)
    row_missing, column_missing = 1 - matrix.sum(1, keepdim=True), 1 - matrix.sum(0, keepdim=True)
    # No sum exceeds 1 now, and both vectors have the same total. Rounding spoils either a little, which would turn a
    # small mass into gradients of 1e17: the values are put right, the derivatives are right as they are.
    smallest = torch.finfo(matrix.dtype).eps / 4  # below any mass but 0
    row_missing = _with_gradient_of(row_missing, row_missing.clamp(min=0))
    mass = row_missing.sum(0, keepdim=True)
    shares = column_missing.clamp(min=0)
    shares = shares / shares.sum(1, keepdim=True).clamp(min=smallest)
    column_missing = _with_gradient_of(column_missing, shares * mass)
    return matrix + row_missing * (column_missing / mass.clamp(min=smallest))


def _with_gradient_of(source: Tensor, value: Tensor) -> Tensor:
    # Written so that the value is exact: source − source is zero.
    return value.detach() + (source - source.detach())
