"""Pieces of the Cayley transform: skew matrices, saturation, polish, and the inverse map."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.kernels.maps.layout import tokens_together
from hyperconn.kernels.passes.watched import watched

POLISH_STEPS = 3
# Largest skew entry that is solved as it is. The solve loses about ‖A‖·eps; up to these sizes that is little enough
# for the polish to give it back.
LARGEST_SKEW = {torch.float32: 8e4, torch.float64: 1e10}
# On the CPU a batch of n×n products walks from matrix to matrix; up to this n, going through the entries of all tokens
# at once is several times faster.
_SMALL = 7


def skew(upper: Tensor, n: int) -> Tensor:
    """``A = -Aᵀ [..., n, n]``, exactly, from its strict upper triangle, row by row: ``[..., n(n-1)/2]``."""
    rows, columns = torch.triu_indices(n, n, offset=1, device=upper.device)
    flat = upper.new_zeros(*upper.shape[:-1], n * n)
    flat = flat.index_copy(-1, rows * n + columns, upper).index_copy(-1, columns * n + rows, -upper)
    return flat.unflatten(-1, (n, n))


def saturate(matrix: Tensor, cap: float, dims: tuple[int, int] = (-2, -1)) -> Tensor:
    """Scale a matrix down so that its largest entry is at most ``cap``; below it nothing changes.

    Directions are kept, so a map that has a limit along every ray meets that limit instead of an overflow.
    NaN and inf give NaN.
    """
    if matrix.numel() == 0:
        return matrix
    largest = matrix.abs().amax(dims, keepdim=True)
    # A division by exactly 1 below the cap; above it no square of ``largest`` appears in the gradient.
    return matrix / (largest / cap).clamp(min=1)


def polish_orthogonal(Q: Tensor) -> Tensor:
    """Newton–Schulz steps ``Q ← Q(3I − QᵀQ)/2`` that take ``Q [..., n, n]``, singular values below √3, to rounding.

    On the orthogonal matrices a step is the identity, and so is its derivative along them. The correction is therefore
    added as a constant: the gradient of whatever produced ``Q`` is already the right one.
    """
    with torch.no_grad():
        small = Q.shape[-1] <= _SMALL and Q.device.type == "cpu" and not watched()
        polished = _polished_by_entries(Q) if small else _polished_by_products(Q)
        correction = polished - Q
    return Q + correction


def _polished_by_products(Q: Tensor) -> Tensor:
    eye3 = 3 * torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    for _ in range(POLISH_STEPS):
        Q = Q @ (eye3 - Q.mT @ Q) / 2
    return Q


def _polished_by_entries(Q: Tensor) -> Tensor:
    """The same on ``[n, n, ...]``, with products as sums of outer products along the tokens."""
    Q = tokens_together(Q)
    for _ in range(POLISH_STEPS):
        gram = torch.zeros_like(Q)
        for row in Q.unbind(0):
            gram.addcmul_(row.unsqueeze(1), row.unsqueeze(0))
        polished = 1.5 * Q
        for column, row in zip(Q.unbind(1), gram.unbind(0), strict=True):
            polished.addcmul_(column.unsqueeze(1), row.unsqueeze(0), value=-0.5)
        Q = polished
    return Q.movedim((0, 1), (-2, -1))


def cayley_inverse(Q: Tensor) -> Tensor:
    """``A = (I + Q)⁻¹(I − Q)``, the skew matrix whose Cayley transform is ``Q``; ``[..., n, n]`` both, Q orthogonal.

    A is not finite, or very large, where Q has the eigenvalue −1.
    """
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    A, _ = torch.linalg.solve_ex(eye + Q, eye - Q)
    return (A - A.mT) / 2
