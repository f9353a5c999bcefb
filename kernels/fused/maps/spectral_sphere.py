"""Device pair of the spectral sphere: ``H = J + Z U diag(σ) Vᵀ Zᵀ``, or ``U diag(1, σ) Vᵀ``."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.maps.cayley import (
    CAPS,
    cayley,
    cayley_backward,
    matmul,
    skew_from_upper,
    transpose,
    upper_from_skew_gradient,
)
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import put, take


@triton.jit
def tanh(x):
    """``tanh x`` of a tile, to a few roundings of its own size."""
    square = x * x
    # A quotient of polynomials near 0, where 1 − exp(−2|x|) cancels: the continued fraction of tanh, cut after x¹⁴.
    above = x * (135135.0 + square * (17325.0 + square * (378.0 + square)))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + 28.0 * square))
    small = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - small) / (1.0 + small)
    near = tl.abs(x) < 0.5
    return tl.where(near, tl.where(near, above, 0.0) / tl.where(near, below, 1.0), tl.where(x < 0, -far, far))


@triton.jit
def tanh_derivative(x):
    """``1 − tanh² x`` of a tile; no difference of nearly equal numbers."""
    small = tl.exp(-2.0 * tl.abs(x))
    return 4.0 * small / ((1.0 + small) * (1.0 + small))


@triton.jit
def _helmert(like, n: tl.constexpr, N: tl.constexpr):
    """``[1, N, N]``: the Helmert basis, n×(n−1) in the corner; zero in the padding."""
    i = tl.arange(0, N)
    row, k = i[None, :, None], i[None, None, :] + 1
    # Column k − 1 has k equal entries above −k times that entry.
    entry = tl.where(row < k, 1.0, tl.where(row == k, -k.to(like.dtype), 0.0))
    norm = tl.sqrt((k * (k + 1)).to(like.dtype))
    return tl.where((row < n) & (k < n), entry / norm, 0.0).to(like.dtype)


@triton.jit
def _bounds(theta, angles: tl.constexpr, gamma: tl.constexpr):
    """``[1, PP]``: what tanh is multiplied with: gamma for the skew entries, 1 for the singular values."""
    p = tl.arange(0, theta.shape[1])
    # Of two plain numbers `where` would make float32.
    one = tl.full([1, theta.shape[1]], 1.0, theta.dtype)
    return tl.where(p[None, :] < 2 * angles, one * gamma, one)


@triton.jit
def _singular_values(bounded, angles: tl.constexpr, core: tl.constexpr, N: tl.constexpr, FIXED: tl.constexpr):
    """``[BT, N]``: FIXED ones, then what follows the angles; zero in the padding."""
    j = tl.arange(0, N)
    free = take(bounded, 2 * angles - FIXED, N)
    return tl.where(j[None, :] < core, tl.where(j[None, :] < FIXED, 1.0, free), 0.0)


@triton.jit
def _sphere_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    core: tl.constexpr = n - 1 if OPTIONS[2] else n
    angles: tl.constexpr = core * (core - 1) // 2
    # An isometric sphere has no free singular value, a plain one all but the first.
    FIXED: tl.constexpr = core if OPTIONS[1] else (0 if OPTIONS[2] else 1)
    bounded = tanh(theta) * _bounds(theta, angles, OPTIONS[0])
    U, _ = cayley(skew_from_upper(bounded, 0, core, N), core, OPTIONS[3], OPTIONS[4])
    V, _ = cayley(skew_from_upper(bounded, angles, core, N), core, OPTIONS[3], OPTIONS[4])
    sigma = _singular_values(bounded, angles, core, N, FIXED)
    if OPTIONS[2]:
        Z = _helmert(theta, n, N)
        return 1.0 / n + matmul(matmul(Z, U) * sigma[:, None, :], transpose(matmul(Z, V)))
    else:  # noqa: RET505
        return matmul(U * sigma[:, None, :], transpose(V))


@triton.jit
def _sphere_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    core: tl.constexpr = n - 1 if OPTIONS[2] else n
    angles: tl.constexpr = core * (core - 1) // 2
    FIXED: tl.constexpr = core if OPTIONS[1] else (0 if OPTIONS[2] else 1)
    PP: tl.constexpr = theta.shape[1]
    bounds = _bounds(theta, angles, OPTIONS[0])
    bounded = tanh(theta) * bounds
    A = skew_from_upper(bounded, 0, core, N)
    B = skew_from_upper(bounded, angles, core, N)
    U, S = cayley(A, core, OPTIONS[3], OPTIONS[4])
    V, T = cayley(B, core, OPTIONS[3], OPTIONS[4])
    sigma = _singular_values(bounded, angles, core, N, FIXED)
    # With E = U diag(σ) Vᵀ and dE = Zᵀ dH Z: dU = dE V diag(σ), dV = dEᵀ U diag(σ), dσ = diag(Uᵀ dE V).
    dE = dH
    if OPTIONS[2]:
        Z = _helmert(theta, n, N)
        dE = matmul(transpose(Z), matmul(dH, Z))
    dE_V = matmul(dE, V)
    dA = cayley_backward(A, S, dE_V * sigma[:, None, :], OPTIONS[3], OPTIONS[4])
    dB = cayley_backward(B, T, matmul(transpose(dE), U) * sigma[:, None, :], OPTIONS[3], OPTIONS[4])
    d_bounded = upper_from_skew_gradient(dA, 0, core, PP) + upper_from_skew_gradient(dB, angles, core, PP)
    if core > FIXED:
        j = tl.arange(0, N)
        d_sigma = tl.where(j[None, :] < FIXED, 0.0, tl.sum(U * dE_V, 1))
        d_bounded += put(d_sigma, 2 * angles - FIXED, core, PP)
    return d_bounded * bounds * tanh_derivative(theta)


def spectral_sphere_pair(gamma: float, isometric: bool, preserve_mean: bool) -> DevicePair:
    """The spectral sphere with the options of ``hyperconn.manifolds.SpectralSphere``."""
    return DevicePair(_sphere_forward, _sphere_backward, (gamma, isometric, preserve_mean, *CAPS))
