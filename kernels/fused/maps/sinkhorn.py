"""Sinkhorn–Knopp balancing in registers: the maps of `hyperconn.kernels.maps.sinkhorn` and their gradients.

A half-sweep takes the logits L to ``L − D``, where D is the log of the sums along one axis; its gradient needs
``exp(L − D)`` alone. Going back through the sweeps therefore takes every intermediate L, which is the next one plus
its D: n numbers a half-sweep are kept instead of n². Only the first half-sweep, whose D can be as large as the
coordinates are, is computed anew. From then on no L exceeds log(1 + eps) and no D exceeds log n by more than that: an
entry that counts has a small logit ever after, and adding D back loses no more than rounding.
"""

from __future__ import annotations

import math
from typing import Literal

import triton
import triton.language as tl

from hyperconn.kernels.fused.maps.rounding import round_backward, round_forward
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import (
    flat_from_square,
    inside_square,
    largest_finite,
    saturate,
    saturate_backward,
    smallest_normal,
    square_from_flat,
)

# What the unrolled gradient keeps grows with the sweeps, and registers do not.
MAX_UNROLLED_ITERATIONS = 32


def sinkhorn_pair(
    iterations: int,
    *,
    first_axis: Literal["rows", "columns"] = "columns",
    eps: float = 0.0,
    eps_mode: Literal["denominator", "softmax"] = "denominator",
    implicit: bool = False,
    rounded: bool = False,
) -> DevicePair | None:
    """The pair of ``sinkhorn(theta, …)``, n² logits row by row; if ``rounded``, also of ``round_to_doubly_stochastic``.

    The other options are those of `hyperconn.kernels.maps.sinkhorn`. None for more than 32 sweeps that have to be
    differentiated one by one.

    Source: mHC, arXiv 2512.24880; JPmHC, arXiv 2602.18308, for the implicit gradient.
    """
    if not implicit and iterations > MAX_UNROLLED_ITERATIONS:
        return None
    mode = eps_mode if eps > 0.0 else "exact"
    # In [BT, N, N] tiles: making the columns sum to 1 normalises along axis 1, the rows along axis 2.
    first = 1 if first_axis == "columns" else 2
    log_eps = math.log(eps) if eps > 0.0 else 0.0
    return DevicePair(sinkhorn_forward, sinkhorn_backward, (iterations, first, mode, log_eps, implicit, rounded))


@triton.jit
def sinkhorn_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Coordinates ``[BT, PP]`` to balanced matrices ``[BT, N, N]``."""
    ROUNDED: tl.constexpr = OPTIONS[5]
    L = _first_half_sweep(_logits(theta, n, N), n, N, OPTIONS)
    balanced = tl.where(inside_square(n, N), tl.exp(_other_half_sweeps(L, OPTIONS)), 0.0)
    return round_forward(balanced, n, N) if ROUNDED else balanced


@triton.jit
def sinkhorn_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient ``[BT, PP]`` of the coordinates from that of the matrices, ``dH [BT, N, N]``."""
    IMPLICIT: tl.constexpr = OPTIONS[4]
    PP: tl.constexpr = theta.shape[1]
    if IMPLICIT:
        d_logits = _implicit_backward(theta, dH, n, N, OPTIONS)
    else:
        d_logits = _unrolled_backward(theta, dH, n, N, OPTIONS)
    # Beyond the corner there may be anything.
    d_logits = tl.where(inside_square(n, N), d_logits, 0.0)
    square = square_from_flat(theta, n, N)
    return flat_from_square(saturate_backward(square, d_logits, _cap(theta)), n, N, PP)


@triton.jit
def _cap(theta):
    # Differences of logits are formed before anything is normalised: keep them finite at the end of the range.
    return largest_finite(theta) / 64


@triton.jit
def _logits(theta, n: tl.constexpr, N: tl.constexpr):
    """``[BT, N, N]`` logits: those of theta, and a separate block of zeros in the padding."""
    L = saturate(square_from_flat(theta, n, N), _cap(theta))
    return _separated(L, n, N)


@triton.jit
def _separated(L, n: tl.constexpr, N: tl.constexpr):
    """L in the n×n corner, zeros in the opposite one, and no mass in between.

    Both blocks are then balanced independently, and every sum is that of at least one finite logit: the sweeps need no
    masks.
    """
    i = tl.arange(0, N)
    far = (i[None, :, None] >= n) & (i[None, None, :] >= n)
    return tl.where(inside_square(n, N), L, tl.where(far, 0.0, float("-inf")))


@triton.jit
def _half_sweep(L, AXIS: tl.constexpr, MODE: tl.constexpr, LOG_EPS: tl.constexpr):
    """``L − D`` and ``D = log(Σ exp L + eps)`` along AXIS; there is no eps in the mode "exact"."""
    largest = tl.max(L, AXIS, keep_dims=True)
    if MODE == "exact":
        total = tl.log(tl.sum(tl.exp(L - largest), AXIS, keep_dims=True))
    else:
        log_eps = tl.full([1, 1, 1], LOG_EPS, L.dtype)
        largest = tl.maximum(largest, log_eps)
        total = tl.log(tl.sum(tl.exp(L - largest), AXIS, keep_dims=True) + tl.exp(log_eps - largest))
    # Not L − D: where D is large, its rounding would spoil the sums.
    return (L - largest) - total, largest + total


@triton.jit
def _half_sweep_backward(L_next, d_next, AXIS: tl.constexpr):
    """Gradient of L from that of ``L_next = L − D``."""
    return d_next - tl.exp(L_next) * tl.sum(d_next, AXIS, keep_dims=True)


@triton.jit
def _first_half_sweep(L, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """The logits after the first half-sweep, the one that the two eps modes do in their own ways."""
    FIRST: tl.constexpr = OPTIONS[1]
    MODE: tl.constexpr = OPTIONS[2]
    LOG_EPS: tl.constexpr = OPTIONS[3]
    if MODE == "softmax":
        L, _ = _half_sweep(L, FIRST, "exact", LOG_EPS)
        log_eps = tl.full([1, 1, 1], LOG_EPS, L.dtype)
        larger = tl.maximum(L, log_eps)
        return _separated(larger + tl.log(tl.exp(L - larger) + tl.exp(log_eps - larger)), n, N)
    else:  # noqa: RET505  (both branches are compiled only if the condition is the whole if)
        if MODE == "denominator":
            L = L - _largest_logit(L, n, N)
        L, _ = _half_sweep(L, FIRST, MODE, LOG_EPS)
        return L


@triton.jit
def _first_half_sweep_backward(L0, d_next, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient of the logits L0 from that of ``_first_half_sweep(L0)``."""
    FIRST: tl.constexpr = OPTIONS[1]
    MODE: tl.constexpr = OPTIONS[2]
    LOG_EPS: tl.constexpr = OPTIONS[3]
    if MODE == "softmax":
        L, _ = _half_sweep(L0, FIRST, "exact", LOG_EPS)
        # d log(exp L + eps) = dL / (1 + eps / exp L); no mass, no gradient
        share = 1 / (1 + tl.exp(tl.minimum(tl.full([1, 1, 1], LOG_EPS, L.dtype) - L, 80.0)))
        return _half_sweep_backward(L, d_next * share, FIRST)
    elif MODE == "denominator":  # noqa: RET505
        largest = _largest_logit(L0, n, N)
        L, _ = _half_sweep(L0 - largest, FIRST, MODE, LOG_EPS)
        d = _half_sweep_backward(L, d_next, FIRST)
        # The largest logit was subtracted everywhere; ties share its gradient, as in torch.
        is_largest = inside_square(n, N) & (largest == L0)
        count = tl.sum(tl.sum(tl.where(is_largest, 1.0, 0.0).to(L0.dtype), 2, keep_dims=True), 1, keep_dims=True)
        d = tl.where(inside_square(n, N), d, 0.0)
        total = tl.sum(tl.sum(d, 2, keep_dims=True), 1, keep_dims=True)
        return d - tl.where(is_largest, total / count, 0.0)
    else:
        L, _ = _half_sweep(L0, FIRST, MODE, LOG_EPS)
        return _half_sweep_backward(L, d_next, FIRST)


@triton.jit
def _largest_logit(L, n: tl.constexpr, N: tl.constexpr):
    """``[BT, 1, 1]``, of the n×n corner."""
    corner = tl.where(inside_square(n, N), L, float("-inf"))
    return tl.max(tl.max(corner, 2, keep_dims=True), 1, keep_dims=True)


@triton.jit
def _other_half_sweeps(L, OPTIONS: tl.constexpr):
    """From the logits after the first half-sweep to those after the last one."""
    ITERATIONS: tl.constexpr = OPTIONS[0]
    FIRST: tl.constexpr = OPTIONS[1]
    SECOND: tl.constexpr = 3 - FIRST
    MODE: tl.constexpr = OPTIONS[2]
    LOG_EPS: tl.constexpr = OPTIONS[3]
    for _ in range(ITERATIONS - 1):
        L, _D = _half_sweep(L, SECOND, MODE, LOG_EPS)
        L, _D = _half_sweep(L, FIRST, MODE, LOG_EPS)
    L, _D = _half_sweep(L, SECOND, MODE, LOG_EPS)
    return L


@triton.jit
def _unrolled_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient ``[BT, N, N]`` of the logits: that of the sweeps as they are."""
    FIRST: tl.constexpr = OPTIONS[1]
    SECOND: tl.constexpr = 3 - FIRST
    MODE: tl.constexpr = OPTIONS[2]
    LOG_EPS: tl.constexpr = OPTIONS[3]
    ROUNDED: tl.constexpr = OPTIONS[5]
    # The half-sweeps between the first and the last one, in segments: each keeps its Ds in two small tiles of its own,
    # so that writing or reading a D touches few numbers and there are few loops to compile.
    LENGTH: tl.constexpr = N if N > 4 else 4
    SEGMENTS: tl.constexpr = (OPTIONS[0] - 1 + LENGTH - 1) // LENGTH

    L0 = _logits(theta, n, N)
    L = _first_half_sweep(L0, n, N, OPTIONS)
    kept = ()
    for segment in tl.static_range(SEGMENTS):
        L, first_D, second_D = _segment(L, segment, LENGTH, OPTIONS)
        kept = kept + (first_D, second_D)  # noqa: RUF005
    L, D = _half_sweep(L, SECOND, MODE, LOG_EPS)

    balanced = tl.where(inside_square(n, N), tl.exp(L), 0.0)
    if ROUNDED:
        dH = round_backward(balanced, dH, n, N)
    dL = _half_sweep_backward(L, dH * balanced, SECOND)
    L += D
    for done in tl.static_range(SEGMENTS):
        first_D = kept[2 * (SEGMENTS - 1 - done)]
        second_D = kept[2 * (SEGMENTS - 1 - done) + 1]
        L, dL = _segment_backward(L, dL, first_D, second_D, SEGMENTS - 1 - done, LENGTH, OPTIONS)
    return _first_half_sweep_backward(L0, dL, n, N, OPTIONS)


@triton.jit
def _segment(L, SEGMENT: tl.constexpr, LENGTH: tl.constexpr, OPTIONS: tl.constexpr):
    """L after the sweeps of a segment, and their Ds: those along the first axis, those along the second one."""
    FIRST: tl.constexpr = OPTIONS[1]
    SECOND: tl.constexpr = 3 - FIRST
    MODE: tl.constexpr = OPTIONS[2]
    LOG_EPS: tl.constexpr = OPTIONS[3]
    REST: tl.constexpr = OPTIONS[0] - 1 - SEGMENT * LENGTH
    COUNT: tl.constexpr = LENGTH if REST > LENGTH else REST
    first_D = _no_history(L, LENGTH, FIRST)
    second_D = _no_history(L, LENGTH, SECOND)
    for sweep in range(COUNT):
        L, D = _half_sweep(L, SECOND, MODE, LOG_EPS)
        second_D = tl.where(_slots(LENGTH, SECOND) == sweep, D, second_D)
        L, E = _half_sweep(L, FIRST, MODE, LOG_EPS)
        first_D = tl.where(_slots(LENGTH, FIRST) == sweep, E, first_D)
    return L, first_D, second_D


@triton.jit
def _segment_backward(
    L, dL, first_D, second_D, SEGMENT: tl.constexpr, LENGTH: tl.constexpr, OPTIONS: tl.constexpr
):  # fmt: skip
    """L and its gradient before the sweeps of a segment, from those after them."""
    FIRST: tl.constexpr = OPTIONS[1]
    SECOND: tl.constexpr = 3 - FIRST
    REST: tl.constexpr = OPTIONS[0] - 1 - SEGMENT * LENGTH
    COUNT: tl.constexpr = LENGTH if REST > LENGTH else REST
    for done in range(COUNT):
        dL = _half_sweep_backward(L, dL, FIRST)
        L += _recall(first_D, COUNT - 1 - done, LENGTH, FIRST)
        dL = _half_sweep_backward(L, dL, SECOND)
        L += _recall(second_D, COUNT - 1 - done, LENGTH, SECOND)
    return L, dL


@triton.jit
def _no_history(L, LENGTH: tl.constexpr, AXIS: tl.constexpr):
    """A tile for LENGTH Ds, side by side along AXIS, the axis that their sums went over."""
    BT: tl.constexpr = L.shape[0]
    N: tl.constexpr = L.shape[1]
    return tl.zeros([BT, LENGTH, N], L.dtype) if AXIS == 1 else tl.zeros([BT, N, LENGTH], L.dtype)


@triton.jit
def _slots(LENGTH: tl.constexpr, AXIS: tl.constexpr):
    slots = tl.arange(0, LENGTH)
    return slots[None, :, None] if AXIS == 1 else slots[None, None, :]


@triton.jit
def _recall(kept, slot, LENGTH: tl.constexpr, AXIS: tl.constexpr):
    """D number ``slot``, in the shape in which it came."""
    return tl.sum(tl.where(_slots(LENGTH, AXIS) == slot, kept, 0.0), AXIS, keep_dims=True)


@triton.jit
def _implicit_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    """Gradient ``[BT, N, N]`` of the logits: that of the limit of the sweeps."""
    ITERATIONS: tl.constexpr = OPTIONS[0]
    ROUNDED: tl.constexpr = OPTIONS[5]
    L = _first_half_sweep(_logits(theta, n, N), n, N, OPTIONS)
    P = tl.where(inside_square(n, N), tl.exp(_other_half_sweeps(L, OPTIONS)), 0.0)
    if ROUNDED:
        dH = round_backward(P, dH, n, N)
    # With W = P ⊙ dH: alternate towards u + P v = W 1, Pᵀu + v = Wᵀ 1.
    W = P * dH
    tiny = smallest_normal(theta)
    row_total, column_total = tl.sum(W, 2, keep_dims=True), tl.sum(W, 1, keep_dims=True)
    row_sum = tl.maximum(tl.sum(P, 2, keep_dims=True), tiny)
    column_sum = tl.maximum(tl.sum(P, 1, keep_dims=True), tiny)
    v = tl.zeros_like(column_total)
    u = row_total / row_sum
    for _ in range(ITERATIONS):
        v = (column_total - tl.sum(P * u, 1, keep_dims=True)) / column_sum
        u = (row_total - tl.sum(P * v, 2, keep_dims=True)) / row_sum
    return W - P * (u + v)
