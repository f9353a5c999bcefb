"""Device functions of the Cayley transform ``(I + A)⁻¹(I − A)`` on tiles of n×n matrices.

``[BT, N, N]`` tiles hold a matrix in their n×n corner; A is zero in the padding. What else the functions say of the
padding is finite and meaningless, and does not reach the corner.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hyperconn.kernels.fused.tiles import put, row_of, saturate, saturate_backward, take
from hyperconn.kernels.maps.cayley import LARGEST_SKEW, POLISH_STEPS

_POLISH_STEPS = tl.constexpr(POLISH_STEPS)

# The CAP32 and CAP64 of ``cayley``.
CAPS = LARGEST_SKEW[torch.float32], LARGEST_SKEW[torch.float64]


@triton.jit
def matmul(A, B):
    """``A @ B`` of ``[BT, N, N]`` tiles; either may have a batch of 1."""
    N: tl.constexpr = A.shape[2]
    if N <= 8:
        return tl.sum(A[:, :, :, None] * B[:, None, :, :], 2)
    else:  # noqa: RET505
        # All products at once no longer fit into registers: add up rank-one updates.
        k = tl.arange(0, N)
        product = tl.zeros_like(A) * tl.zeros_like(B)
        for step in range(N):
            column = tl.sum(tl.where(k[None, None, :] == step, A, 0.0), 2)
            product += column[:, :, None] * row_of(B, step)[:, None, :]
        return product


@triton.jit
def transpose(A):
    """``[BT, N, N]`` with its last two axes exchanged."""
    return tl.permute(A, (0, 2, 1))


@triton.jit
def eye_like(A):
    """``[1, N, N]`` identity in the dtype of A."""
    i = tl.arange(0, A.shape[2])
    return (i[None, :, None] == i[None, None, :]).to(A.dtype)


@triton.jit
def skew_from_upper(flat, offset, size: tl.constexpr, N: tl.constexpr):
    """``[BT, N, N]`` skew matrix; its strict upper triangle, row by row, is in ``flat [BT, PP]`` from offset on."""
    i = tl.arange(0, N)
    upper = tl.zeros([flat.shape[0], N, N], flat.dtype)
    for row in range(size - 1):
        window = take(flat, offset + _row_start(row, size), N)
        here = (i[None, :, None] == row) & (i[None, None, :] > row) & (i[None, None, :] < size)
        upper = tl.where(here, window[:, None, :], upper)
    return upper - transpose(upper)


@triton.jit
def upper_from_skew_gradient(dA, offset, size: tl.constexpr, PP: tl.constexpr):
    """``[BT, PP]``: gradient of the coordinates of ``skew_from_upper`` from that of its result; zero elsewhere."""
    d_upper = dA - transpose(dA)
    j = tl.arange(0, dA.shape[2])
    flat = tl.zeros([dA.shape[0], PP], dA.dtype)
    for row in range(size - 1):
        values = tl.where(j[None, :] > row, row_of(d_upper, row), 0.0)
        flat += put(values, offset + _row_start(row, size), size, PP)
    return flat


@triton.jit
def _row_start(row, size: tl.constexpr):
    # Where column 0 of this row would be, could the triangle be continued to the left.
    return row * (2 * size - row - 1) // 2 - row - 1


@triton.jit
def inverse(M, size: tl.constexpr):
    """Inverse of ``M [BT, N, N]``, size×size in its corner; by Gauss–Jordan elimination with row pivots.

    The pivots are needed: for large skew A the pivots of ``I + A`` taken in order are differences of numbers as large
    as ‖A‖², and float32 keeps nothing of them.
    """
    N: tl.constexpr = M.shape[2]
    i = tl.arange(0, N)
    unused = tl.zeros_like(tl.sum(M, 2)) + tl.where(i[None, :] < size, 1.0, 0.0)
    # Rows are not exchanged; pivot_of[i, k] = 1 says that row i has been the pivot of column k.
    pivot_of = tl.zeros_like(M)
    R = tl.zeros_like(M) + eye_like(M)
    for k in range(size):
        column = tl.sum(tl.where(i[None, None, :] == k, M, 0.0), 2)
        candidates = tl.where(unused > 0, tl.abs(column), -1.0)
        best = candidates == tl.max(candidates, 1, keep_dims=True)
        row = tl.min(tl.where(best, i[None, :], N), 1)
        here = i[None, :] == row[:, None]
        unused = tl.where(here, 0.0, unused)
        pivot_of = tl.where((i[None, None, :] == k) & here[:, :, None], 1.0, pivot_of)
        # Divide the pivot row by its pivot, and take multiples of it from all others.
        pivot = tl.sum(tl.where(here, column, 0.0), 1)
        M_row = tl.sum(tl.where(here[:, :, None], M, 0.0), 1) / pivot[:, None]
        R_row = tl.sum(tl.where(here[:, :, None], R, 0.0), 1) / pivot[:, None]
        M = tl.where(here[:, :, None], M_row[:, None, :], M - column[:, :, None] * M_row[:, None, :])
        R = tl.where(here[:, :, None], R_row[:, None, :], R - column[:, :, None] * R_row[:, None, :])
    return matmul(transpose(pivot_of), R)


@triton.jit
def polish_orthogonal(Q):
    """Newton–Schulz steps ``Q ← Q(3I − QᵀQ)/2``; see ``hyperconn.kernels.maps.cayley``."""
    eye = eye_like(Q)
    for _ in range(_POLISH_STEPS):
        Q = matmul(Q, 3.0 * eye - matmul(transpose(Q), Q)) * 0.5
    return Q


@triton.jit
def cayley(A, size: tl.constexpr, CAP32: tl.constexpr, CAP64: tl.constexpr):
    """Cayley transform Q of skew ``A [BT, N, N]``, and ``S = (I + A)⁻¹``, which the backward asks for.

    Entries of A are scaled down where the largest exceeds CAP32 in float32, CAP64 in float64.
    """
    saturated = saturate(A, CAP64 if A.dtype == tl.float64 else CAP32)
    S = inverse(eye_like(A) + saturated, size)
    # (I + A)⁻¹(I − A) = 2 (I + A)⁻¹ − I
    return polish_orthogonal(2.0 * S - eye_like(A)), S


@triton.jit
def cayley_backward(A, S, dQ, CAP32: tl.constexpr, CAP64: tl.constexpr):
    """Gradient of A from that of Q. The polish is the identity on orthogonal matrices, and so is its derivative."""
    S_t = transpose(S)
    # dS = −S dA S
    d_saturated = -2.0 * matmul(matmul(S_t, dQ), S_t)
    return saturate_backward(A, d_saturated, CAP64 if A.dtype == tl.float64 else CAP32)
