"""Mixtures of permutation matrices in registers, as a matrix by themselves or as one factor of a Kronecker product.

A factor of size m mixes the m! permutations with the softmax of m! coordinates, which start at some place in theta. As
one of several factors it is spread over the n×n tile: its row a serves the rows i with ``(i // stride) mod m = a``, and
its columns likewise. A matrix by itself is the factor of size n and stride 1 at place 0.

No permutation is stored: number k is decoded on the fly, three bits a position in one integer for each k.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from hyperconn.kernels.fused.pair import DevicePair


def permutation_pair(n: int) -> DevicePair:
    """The pair of ``Σ softmax(theta)_k P_k`` over the n! permutations in the order of ``itertools.permutations``.

    Args:
        n: size of the matrix, at most 8 (three bits a position); 8 would take 40320 coordinates.

    Source: mHC-lite, arXiv 2601.05732.
    """
    return DevicePair(permutation_forward, permutation_backward, factor_options(n, start=0, stride=1))


def factor_options(size: int, *, start: int, stride: int) -> tuple[int, int, int, int]:
    """What OPTIONS say of one factor: its size, number of coordinates, place of the first one, and stride.

    OPTIONS is flat, four numbers a factor: the compiler takes no tuples of tuples.
    """
    return size, math.factorial(size), start, stride


@triton.jit
def permutation_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Coordinates ``[BT, PP]`` to matrices ``[BT, N, N]``."""
    return factor_forward(theta, N, OPTIONS, 0)


@triton.jit
def permutation_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient ``[BT, PP]`` of the coordinates from that of the matrices, ``dH [BT, N, N]``."""
    return factor_backward(theta, dH, OPTIONS, 0)


@triton.jit
def factor_forward(theta, N: tl.constexpr, OPTIONS: tl.constexpr, K: tl.constexpr):
    """Coordinates ``[BT, PP]`` of all factors to the ``[BT, N, N]`` matrix of factor K, spread over the tile."""
    SIZE: tl.constexpr = OPTIONS[4 * K]
    STRIDE: tl.constexpr = OPTIONS[4 * K + 3]
    BT: tl.constexpr = theta.shape[0]
    weights = _weights(theta, OPTIONS, K)
    images = _images(theta.shape[1], OPTIONS, K)
    place = (tl.arange(0, N) // STRIDE) % SIZE
    matrix = tl.zeros([BT, N, N], theta.dtype)
    for a in range(SIZE):
        # Row a of the mixture, spread over the columns: Σ_k weight_k [π_k(a) = place of j].
        hit = _image(images, a)[None, None, :] == place[None, :, None]
        row = tl.sum(tl.where(hit, weights[:, None, :], 0.0), 2)
        matrix = tl.where((place == a)[None, :, None], row[:, None, :], matrix)
    return matrix


@triton.jit
def factor_backward(theta, d_matrix, OPTIONS: tl.constexpr, K: tl.constexpr):
    """Gradient ``[BT, PP]`` of the coordinates from that of ``factor_forward``, ``d_matrix [BT, N, N]``.

    It is zero at the coordinates of other factors. ``d_matrix`` must be zero in the padding.
    """
    SIZE: tl.constexpr = OPTIONS[4 * K]
    STRIDE: tl.constexpr = OPTIONS[4 * K + 3]
    N: tl.constexpr = d_matrix.shape[1]
    weights = _weights(theta, OPTIONS, K)
    images = _images(theta.shape[1], OPTIONS, K)
    place = (tl.arange(0, N) // STRIDE) % SIZE
    d_weights = tl.zeros_like(weights)
    for a in range(SIZE):
        d_row = tl.sum(tl.where((place == a)[None, :, None], d_matrix, 0.0), 1)
        hit = _image(images, a)[None, None, :] == place[None, :, None]
        d_weights += tl.sum(tl.where(hit, d_row[:, :, None], 0.0), 1)
    return weights * (d_weights - tl.sum(weights * d_weights, 1, keep_dims=True))


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
