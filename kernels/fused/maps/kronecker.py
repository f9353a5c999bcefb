"""Kronecker products of permutation mixtures in registers.

In the product of factors of sizes m₁, m₂, … a row index i is a number whose digits, the first factor's first, are the
row indices of the factors: every factor is spread over the n×n tile by its own digit, and the product is taken entry
by entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from hyperconn.kernels.fused.maps.permutation import factor_backward, factor_forward, factor_options
from hyperconn.kernels.fused.pair import DevicePair


def kronecker_pair(sizes: Sequence[int]) -> DevicePair:
    """The pair of ``U₁ ⊗ U₂ ⊗ …``, each a mixture of all permutations of its size; the identity if there is none.

    Args:
        sizes: of the factors, each at most 8; their coordinates, m! each, follow one another in theta.

    Source: KromHC, arXiv 2601.21579.
    """
    starts = [sum(map(math.factorial, sizes[:k])) for k in range(len(sizes))]
    strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    options = (
        number
        for size, start, stride in zip(sizes, starts, strides, strict=True)
        for number in factor_options(size, start=start, stride=stride)
    )
    return DevicePair(kronecker_forward, kronecker_backward, tuple(options))


@triton.jit
def kronecker_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Coordinates ``[BT, PP]`` to matrices ``[BT, N, N]``."""
    FACTORS: tl.constexpr = len(OPTIONS) // 4
    product = tl.full([theta.shape[0], N, N], 1.0, theta.dtype)
    for k in tl.static_range(FACTORS):
        product *= factor_forward(theta, N, OPTIONS, k)
    return product


@triton.jit
def kronecker_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient ``[BT, PP]`` of the coordinates from that of the matrices, ``dH [BT, N, N]``."""
    FACTORS: tl.constexpr = len(OPTIONS) // 4
    # after[k] is dH times the last k factors. With the product of the factors before it every factor meets all others,
    # and nothing is divided.
    after = (dH,)
    for k in tl.static_range(FACTORS - 1):
        after = after + (after[k] * factor_forward(theta, N, OPTIONS, FACTORS - 1 - k),)  # noqa: RUF005
    dtheta = tl.zeros_like(theta)
    before = tl.full([theta.shape[0], N, N], 1.0, theta.dtype)
    for k in tl.static_range(FACTORS):
        dtheta += factor_backward(theta, before * after[FACTORS - 1 - k], OPTIONS, k)
        before *= factor_forward(theta, N, OPTIONS, k)
    return dtheta
