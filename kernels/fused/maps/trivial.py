"""Device pairs of the manifolds that constrain nothing, or everything."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import flat_from_square, square_from_flat


@triton.jit
def _unconstrained_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return square_from_flat(theta, n, N)


@triton.jit
def _unconstrained_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return flat_from_square(dH, n, N, theta.shape[1])


@triton.jit
def _identity_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    i = tl.arange(0, N)
    eye = (i[None, :, None] == i[None, None, :]).to(theta.dtype)
    return tl.broadcast_to(eye, [theta.shape[0], N, N])


@triton.jit
def _identity_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    # There are no coordinates: all of the tile is padding.
    return theta


UNCONSTRAINED = DevicePair(_unconstrained_forward, _unconstrained_backward)
IDENTITY = DevicePair(_identity_forward, _identity_backward)
