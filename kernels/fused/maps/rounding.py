"""Rounding onto the doubly stochastic matrices in registers: `hyperconn.kernels.maps.rounding`, value and gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.tiles import machine_epsilon


@triton.jit
def round_forward(M, n: tl.constexpr, N: tl.constexpr):
    """``M [BT, N, N]``, nonnegative and zero in the padding, to the rounded matrix, zero in the padding.

    Source: Altschuler, Weed and Rigollet, arXiv 1705.09634, Algorithm 2.
    """
    B, row_missing, column_missing, mass = _scaled(M, n, N)
    return B + row_missing * (column_missing / tl.maximum(mass, _smallest_mass(M)))


@triton.jit
def round_backward(M, d_rounded, n: tl.constexpr, N: tl.constexpr):
    """Gradient of ``M [BT, N, N]`` from that of ``round_forward(M)``; both must be zero in the padding."""
    # rounded = B + row_missing · column_missing / mass
    _B, row_missing, column_missing, mass = _scaled(M, n, N)
    safe_mass = tl.maximum(mass, _smallest_mass(M))
    d_row = tl.sum(d_rounded * (column_missing / safe_mass), 2, keep_dims=True)
    d_column = tl.sum(d_rounded * (row_missing / safe_mass), 1, keep_dims=True)
    d_mass = -tl.sum(d_row * (row_missing / safe_mass), 1, keep_dims=True)
    d_row += tl.where(mass >= _smallest_mass(M), d_mass, 0.0)
    # row_missing = 1 − row sums of B; mass is their sum; column_missing = 1 − column sums of B
    d_scaled = d_rounded - d_row - d_column
    # B = A / max(column sums of A, 1), A = M / max(row sums of M, 1)
    row_sum = tl.sum(M, 2, keep_dims=True)
    A = M / tl.maximum(row_sum, 1.0)
    d_scaled = _divide_backward(A, d_scaled, 1)
    d_scaled = _divide_backward(M, d_scaled, 2)
    return tl.where(_off(M, n, N) > n * machine_epsilon(M), d_scaled, _project_backward(d_rounded, n))


@triton.jit
def _scaled(M, n: tl.constexpr, N: tl.constexpr):
    """M with no sum above 1; what its rows ``[BT, N, 1]`` and columns ``[BT, 1, N]`` lack; the total of either."""
    i = tl.arange(0, N)
    M = M / tl.maximum(tl.sum(M, 2, keep_dims=True), 1.0)
    M = M / tl.maximum(tl.sum(M, 1, keep_dims=True), 1.0)
    # Rounding can take a sum above 1 by a little, and makes the two totals differ by as much.
    row_missing = tl.where(i[None, :, None] < n, tl.maximum(1 - tl.sum(M, 2, keep_dims=True), 0.0), 0.0)
    shares = tl.where(i[None, None, :] < n, tl.maximum(1 - tl.sum(M, 1, keep_dims=True), 0.0), 0.0)
    mass = tl.sum(row_missing, 1, keep_dims=True)
    shares = shares / tl.maximum(tl.sum(shares, 2, keep_dims=True), _smallest_mass(M))
    return M, row_missing, shares * mass, mass


@triton.jit
def _smallest_mass(M):
    # Below any mass but 0.
    return machine_epsilon(M) / 4


@triton.jit
def _divide_backward(M, d_quotient, AXIS: tl.constexpr):
    """Gradient of M from that of ``M / max(sums of M along AXIS, 1)``."""
    total = tl.sum(M, AXIS, keep_dims=True)
    divisor = tl.maximum(total, 1.0)
    d_divisor = -tl.sum(d_quotient * (M / divisor), AXIS, keep_dims=True) / divisor
    return d_quotient / divisor + tl.where(total >= 1, d_divisor, 0.0)


@triton.jit
def _off(M, n: tl.constexpr, N: tl.constexpr):
    """``[BT, 1, 1]``: how far the row and column sums are from 1 at most."""
    i = tl.arange(0, N)
    row_error = tl.where(i[None, :, None] < n, tl.abs(1 - tl.sum(M, 2, keep_dims=True)), 0.0)
    column_error = tl.where(i[None, None, :] < n, tl.abs(1 - tl.sum(M, 1, keep_dims=True)), 0.0)
    return tl.maximum(tl.max(row_error, 1, keep_dims=True), tl.max(column_error, 2, keep_dims=True))


@triton.jit
def _project_backward(d_projected, n: tl.constexpr):
    """Gradient through the orthogonal projection onto the matrices with row and column sums 1."""
    row_mean = tl.sum(d_projected, 2, keep_dims=True) / n
    column_mean = tl.sum(d_projected, 1, keep_dims=True) / n
    return d_projected - (row_mean - tl.sum(row_mean, 1, keep_dims=True) / n) - column_mean
