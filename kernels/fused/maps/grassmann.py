"""Device pair of the projectors of a fixed rank."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.maps.cayley import CAPS, cayley, cayley_backward, matmul, transpose
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import put, row_of, take


@triton.jit
def _block_skew(theta, n: tl.constexpr, N: tl.constexpr, p: tl.constexpr):
    """``[BT, N, N]``: the skew matrix whose lower left (n−p)×p block theta holds, row by row."""
    i = tl.arange(0, N)
    lower = tl.zeros([theta.shape[0], N, N], theta.dtype)
    for row in range(n - p):
        here = (i[None, :, None] == p + row) & (i[None, None, :] < p)
        lower = tl.where(here, take(theta, row * p, N)[:, None, :], lower)
    return lower - transpose(lower)


@triton.jit
def _first_columns(Q, p: tl.constexpr):
    """Q with all but its first p columns set to zero."""
    j = tl.arange(0, Q.shape[2])
    return tl.where(j[None, None, :] < p, Q, 0.0)


@triton.jit
def _grassmann_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    Q, _ = cayley(_block_skew(theta, n, N, OPTIONS[0]), n, OPTIONS[1], OPTIONS[2])
    U = _first_columns(Q, OPTIONS[0])
    return matmul(U, transpose(U))


@triton.jit
def _grassmann_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    p: tl.constexpr = OPTIONS[0]
    PP: tl.constexpr = theta.shape[1]
    A = _block_skew(theta, n, N, p)
    Q, S = cayley(A, n, OPTIONS[1], OPTIONS[2])
    dU = matmul(dH + transpose(dH), _first_columns(Q, p))
    dA = cayley_backward(A, S, dU, OPTIONS[1], OPTIONS[2])
    d_lower = dA - transpose(dA)
    dtheta = tl.zeros_like(theta)
    for row in range(n - p):
        dtheta += put(row_of(d_lower, p + row), row * p, p, PP)
    return dtheta


def grassmann_pair(rank: int) -> DevicePair:
    """Projectors of that rank, between 1 and n."""
    return DevicePair(_grassmann_forward, _grassmann_backward, (rank, *CAPS))
