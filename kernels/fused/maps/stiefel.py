"""Device pairs of the rotations: the exact Cayley transform, and the paper's iteration."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.maps.cayley import (
    CAPS,
    cayley,
    cayley_backward,
    eye_like,
    matmul,
    skew_from_upper,
    transpose,
    upper_from_skew_gradient,
)
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import flat_from_square, square_from_flat


@triton.jit
def _skew(theta, n: tl.constexpr, N: tl.constexpr, FULL: tl.constexpr):
    """``[BT, N, N]`` skew matrix of its upper triangle, or of all n² entries of a matrix."""
    if FULL:
        W = square_from_flat(theta, n, N) * 0.5  # halved first, so that no difference overflows
        return W - transpose(W)
    else:  # noqa: RET505  (both branches are compiled only if the condition is the whole if)
        return skew_from_upper(theta, 0, n, N)


@triton.jit
def _coordinates(dA, n: tl.constexpr, N: tl.constexpr, PP: tl.constexpr, FULL: tl.constexpr):
    """``[BT, PP]`` gradient of the coordinates of ``_skew`` from that of its result."""
    if FULL:
        return flat_from_square((dA - transpose(dA)) * 0.5, n, N, PP)
    else:  # noqa: RET505
        return upper_from_skew_gradient(dA, 0, n, PP)


@triton.jit
def _stiefel_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    Q, _ = cayley(_skew(theta, n, N, OPTIONS[2]), n, OPTIONS[0], OPTIONS[1])
    return Q


@triton.jit
def _stiefel_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    A = _skew(theta, n, N, OPTIONS[2])
    _, S = cayley(A, n, OPTIONS[0], OPTIONS[1])
    dA = cayley_backward(A, S, dH, OPTIONS[0], OPTIONS[1])
    return _coordinates(dA, n, N, theta.shape[1], OPTIONS[2])


@triton.jit
def _iterative_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    # With M = (α/2) W the iteration Y ← I + M(I + Y) from I + 2M is 2S − I, where S ← I + M S from I, a step ahead.
    M = _skew(theta, n, N, OPTIONS[2]) * (OPTIONS[0] * 0.5)
    eye = eye_like(M)
    S = tl.zeros_like(M) + eye
    for _ in range(OPTIONS[1] + 1):
        S = eye + matmul(M, S)
    return 2.0 * S - eye


@triton.jit
def _iterative_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    M = _skew(theta, n, N, OPTIONS[2]) * (OPTIONS[0] * 0.5)
    eye = eye_like(M)
    S = tl.zeros_like(M) + eye
    # S_K depends on M in step k through (M)^(K−k) dM S_(k−1): by Horner's rule the sum runs forward, beside S itself.
    dM = tl.zeros_like(M)
    for _ in range(OPTIONS[1] + 1):
        dM = matmul(transpose(M), dM) + 2.0 * matmul(dH, transpose(S))
        S = eye + matmul(M, S)
    return _coordinates(dM * (OPTIONS[0] * 0.5), n, N, theta.shape[1], OPTIONS[2])


def stiefel_pair(full: bool, caps: tuple[float, float] = CAPS) -> DevicePair:
    """The exact Cayley transform of n² coordinates, or of those of a triangle; larger skew entries are scaled down."""
    return DevicePair(_stiefel_forward, _stiefel_backward, (*caps, full))


def iterative_pair(alpha: float, steps: int, full: bool) -> DevicePair:
    """The fixed-point iteration of JPmHC; not exact."""
    return DevicePair(_iterative_forward, _iterative_backward, (alpha, steps, full))
