"""Mixtures of permutation matrices, and Kronecker products of them, in registers.

A factor of size m mixes the m! permutations with the softmax of m! coordinates, which start at some place in theta. In
the product of factors of sizes m₁, m₂, … a row index i is a number whose digits, the first factor's first, are the row
indices of the factors: row a of a factor serves the rows i with ``(i // stride) mod m = a``, and its columns likewise.
So every factor is spread over the n×n tile, and the product is taken entry by entry. One factor is a mixture by itself.

No permutation is stored: number k is decoded on the fly, three bits a position in one integer for each k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from hyperconn.kernels.fused.pair import DevicePair


def kronecker_pair(sizes: Sequence[int]) -> DevicePair:
    """The pair of ``U₁ ⊗ U₂ ⊗ …``, each ``Σ softmax(theta)_k P_k`` over the permutations of its size, at most 8.

    No factor makes the identity. The coordinates of the factors, m! each in the order of ``itertools.permutations``,
    follow one another in theta.

    Source: KromHC, arXiv 2601.21579; mHC-lite, arXiv 2601.05732, for one factor.
    """
    # Size, number of coordinates, place of the first one, and stride. The compiler takes no tuples of tuples.
    options: list[int] = []
    for k, size in enumerate(sizes):
        options += [size, math.factorial(size), sum(options[1::4]), math.prod(sizes[k + 1 :])]
    return DevicePair(_kronecker_forward, _kronecker_backward, tuple(options))


@triton.jit
def _kronecker_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Coordinates ``[BT, PP]`` to matrices ``[BT, N, N]``."""
    FACTORS: tl.constexpr = len(OPTIONS) // 4
    product = tl.full([theta.shape[0], N, N], 1.0, theta.dtype)
    for k in tl.static_range(FACTORS):
        product *= _factor_forward(theta, N, OPTIONS, k)
    return product


@triton.jit
def _kronecker_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient ``[BT, PP]`` of the coordinates from that of the matrices, ``dH [BT, N, N]``."""
    FACTORS: tl.constexpr = len(OPTIONS) // 4
    # after[k] is dH times the last k factors. With the product of the factors before it every factor meets all others,
    # and nothing is divided.
    after = (dH,)
    for k in tl.static_range(FACTORS - 1):
        after = after + (after[k] * _factor_forward(theta, N, OPTIONS, FACTORS - 1 - k),)  # noqa: RUF005
    dtheta = tl.zeros_like(theta)
    before = tl.full([theta.shape[0], N, N], 1.0, theta.dtype)
    for k in tl.static_range(FACTORS):
        dtheta += _factor_backward(theta, before * after[FACTORS - 1 - k], OPTIONS, k)
        before *= _factor_forward(theta, N, OPTIONS, k)
    return dtheta


@triton.jit
def _factor_forward(theta, N: tl.constexpr, OPTIONS: tl.constexpr, K: tl.constexpr):
    """Coordinates ``[BT, PP]`` of all factors to the ``[BT, N, N]`` matrix of factor K, spread over the tile."""
    SIZE: tl.constexpr = OPTIONS[4 * K]
    BT: tl.constexpr = theta.shape[0]
    weights, images, place = _factor(theta, N, OPTIONS, K)
    matrix = tl.zeros([BT, N, N], theta.dtype)
    for a in range(SIZE):
        # Row a of the mixture, spread over the columns: Σ_k weight_k [π_k(a) = place of j].
        hit = _image(images, a)[None, None, :] == place[None, :, None]
        row = tl.sum(tl.where(hit, weights[:, None, :], 0.0), 2)
        matrix = tl.where((place == a)[None, :, None], row[:, None, :], matrix)
    return matrix


@triton.jit
def _factor_backward(theta, d_matrix, OPTIONS: tl.constexpr, K: tl.constexpr):
    """Gradient ``[BT, PP]`` of the coordinates from that of ``_factor_forward``, ``d_matrix [BT, N, N]``.

    It is zero at the coordinates of other factors. ``d_matrix`` must be zero in the padding.
    """
    SIZE: tl.constexpr = OPTIONS[4 * K]
    N: tl.constexpr = d_matrix.shape[1]
    weights, images, place = _factor(theta, N, OPTIONS, K)
    d_weights = tl.zeros_like(weights)
    for a in range(SIZE):
        d_row = tl.sum(tl.where((place == a)[None, :, None], d_matrix, 0.0), 1)
        hit = _image(images, a)[None, None, :] == place[None, :, None]
        d_weights += tl.sum(tl.where(hit, d_row[:, :, None], 0.0), 1)
    return weights * (d_weights - tl.sum(weights * d_weights, 1, keep_dims=True))


@triton.jit
def _factor(theta, N: tl.constexpr, OPTIONS: tl.constexpr, K: tl.constexpr):
    """Weights and images of the permutations of factor K, and ``[N]``: which of its rows serves a row of the tile."""
    STRIDE: tl.constexpr = OPTIONS[4 * K + 3]
    place = (tl.arange(0, N) // STRIDE) % OPTIONS[4 * K]
    return _weights(theta, OPTIONS, K), _images(theta.shape[1], OPTIONS, K), place


@triton.jit
def _weights(theta, OPTIONS: tl.constexpr, K: tl.constexpr):
    """``[BT, PP]``: softmax over the coordinates of the factor, zero at all others."""
    COUNT: tl.constexpr = OPTIONS[4 * K + 1]
    START: tl.constexpr = OPTIONS[4 * K + 2]
    p = tl.arange(0, theta.shape[1])
    own = ((p >= START) & (p < START + COUNT))[None, :]
    logits = tl.where(own, theta, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1, keep_dims=True))
    return weights / tl.sum(weights, 1, keep_dims=True)


@triton.jit
def _image(images, position):
    """``[PP]``: π_k(position)."""
    return (images >> (3 * position)) & 7


@triton.jit
def _images(PP: tl.constexpr, OPTIONS: tl.constexpr, K: tl.constexpr):
    """``[PP]`` int32: three bits for each of π_k(0), π_k(1), …, where p is the coordinate of permutation k.

    In lexicographic order the digits of k in the factorial number system say, position by position, how many of the
    elements that are still free to skip. At the coordinates of other factors there is nonsense, which only ever meets
    a weight of zero.
    """
    SIZE: tl.constexpr = OPTIONS[4 * K]
    START: tl.constexpr = OPTIONS[4 * K + 2]
    # The last digit has one value, the one before it two, …
    rest = tl.maximum(tl.arange(0, PP) - START, 0)
    digits = tl.zeros([PP], tl.int32)
    for back in tl.static_range(SIZE):
        digits = digits | ((rest % (back + 1)) << (3 * (SIZE - 1 - back)))
        rest = rest // (back + 1)
    taken = tl.zeros([PP], tl.int32)
    images = tl.zeros([PP], tl.int32)
    for position in tl.static_range(SIZE):
        skip = (digits >> (3 * position)) & 7
        image = tl.zeros([PP], tl.int32)
        for element in tl.static_range(SIZE):
            free = ((taken >> element) & 1) == 0
            image = tl.where(free & (skip == 0), element, image)
            skip = tl.where(free, skip - 1, skip)
        taken = taken | (1 << image)
        images = images | (image << (3 * position))
    return images
