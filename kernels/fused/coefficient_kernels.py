"""Kernels of the coefficient step: raw projections to read weights, write weights and residual matrix, and back.

The three parts of a token's projections, pre | post | residual, are tiles of their own, each as wide as the next power
of two of its size: a gate or a constraint then sees its own logits and nothing else. A part has one scale, the residual
part one for each of its coordinate groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.tiles import matrix_entries
from hyperconn.kernels.passes.normalisation import NEXT_TO_NOTHING

_NEXT_TO_NOTHING = tl.constexpr(NEXT_TO_NOTHING)


@triton.jit
def _scale_of_coordinate(
    scale_ptr, SIZE: tl.constexpr, PADDED: tl.constexpr, FIRST: tl.constexpr, STARTS: tl.constexpr
):
    """``[PADDED]``: scale number FIRST for the coordinates from STARTS[0] on, the next one from STARTS[1] on, …"""
    p = tl.arange(0, PADDED)
    group = tl.zeros([PADDED], tl.int32) + FIRST
    for k in tl.static_range(1, len(STARTS)):
        group += (p >= STARTS[k]).to(tl.int32)
    return tl.load(scale_ptr + group, mask=p < SIZE, other=0.0)


@triton.jit
def _logits_part(
    raw_ptr, base_ptr, inverse_rms, scale, t, T, P, OFFSET: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """``[BT, PADDED]``: the SIZE normalised projections from OFFSET on, and their logits."""
    p = tl.arange(0, PADDED)
    inside = (t[:, None] < T) & (p[None, :] < SIZE)
    z = tl.load(raw_ptr + t[:, None] * (P + 1) + (OFFSET + p[None, :]), mask=inside, other=0.0) * inverse_rms[:, None]
    base = tl.load(base_ptr + OFFSET + p, mask=p < SIZE, other=0.0)
    return z, tl.where(p[None, :] < SIZE, scale[None, :] * z + base[None, :], 0.0)


@triton.jit
def _inverse_rms(raw_ptr, t, T, P, width, NORM_EPS: tl.constexpr, OUTSIDE: tl.constexpr):
    """``[BT]`` one over the root mean square of each token, and what ``Σ z dz`` makes of it for the square sum.

    A token of next to nothing has no direction: without an eps both are 0, instead of ``0 · ∞``.
    """
    # Tokens beyond the last have a square sum of one: their root is finite, and they are masked wherever they matter.
    mean_square = tl.load(raw_ptr + t * (P + 1) + P, mask=t < T, other=1.0) / width
    nothing = mean_square <= (0.0 if NORM_EPS > 0.0 else _NEXT_TO_NOTHING)
    if OUTSIDE or NORM_EPS == 0.0:
        root = tl.sqrt(tl.where(nothing, 1.0, mean_square))
        inverse = 1.0 / (root + NORM_EPS)
        # z = raw / (r + eps), r² = ss / width, so d ss = -Σ z dz / (2 r (r + eps) width).
        slope = tl.where(nothing, 0.0, -0.5 * inverse / (root * width))
        at_zero = 1.0 / NORM_EPS if NORM_EPS > 0.0 else 0.0
        return tl.where(nothing, at_zero, inverse), slope
    else:  # noqa: RET505
        # z = raw / r and r² = ss / width + eps, so d ss = -Σ z dz / (2 r² width).
        inverse = 1.0 / tl.sqrt(mean_square + NORM_EPS)
        return inverse, -0.5 * inverse * inverse / width


@triton.jit
def _coefficients_forward_kernel(
    raw_ptr, base_ptr, scale_ptr, pre_ptr, post_ptr, H_ptr, T, width, post_gain,
    PRE: tl.constexpr, PRE_OPTIONS: tl.constexpr, POST: tl.constexpr, POST_OPTIONS: tl.constexpr,
    CONSTRAIN: tl.constexpr, OPTIONS: tl.constexpr,
    n: tl.constexpr, N: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr, STARTS: tl.constexpr,
    PRE_EPS: tl.constexpr, POST_EPS: tl.constexpr, NORM_EPS: tl.constexpr, OUTSIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    P: tl.constexpr = SIZES[0] + SIZES[1] + SIZES[2]
    POST_AT: tl.constexpr = SIZES[0]
    THETA_AT: tl.constexpr = SIZES[0] + SIZES[1]
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    i = tl.arange(0, N)
    vector_entry = t[:, None] * n + i[None, :]
    vector_inside = (t[:, None] < T) & (i[None, :] < n)
    inverse_rms, _ = _inverse_rms(raw_ptr, t, T, P, width, NORM_EPS, OUTSIDE)

    # pre = gate(scale₀ z + base) + eps
    scale = _scale_of_coordinate(scale_ptr, SIZES[0], PADDED[0], 0, (0,))
    _, logits = _logits_part(raw_ptr, base_ptr, inverse_rms, scale, t, T, P, 0, SIZES[0], PADDED[0])
    tl.store(pre_ptr + vector_entry, PRE(logits, n, N, PRE_OPTIONS) + PRE_EPS, mask=vector_inside)

    # post = gain gate(scale₁ z + base) + eps
    scale = _scale_of_coordinate(scale_ptr, SIZES[1], PADDED[1], 1, (0,))
    _, logits = _logits_part(raw_ptr, base_ptr, inverse_rms, scale, t, T, P, POST_AT, SIZES[1], PADDED[1])
    post = post_gain * POST(logits, n, N, POST_OPTIONS) + POST_EPS
    tl.store(post_ptr + vector_entry, post, mask=vector_inside)

    # H = constraint(scale_g z + base), transposed where the config says so
    scale = _scale_of_coordinate(scale_ptr, SIZES[2], PADDED[2], 2, STARTS)
    _, theta = _logits_part(raw_ptr, base_ptr, inverse_rms, scale, t, T, P, THETA_AT, SIZES[2], PADDED[2])
    entry, inside = matrix_entries(t, T, n, N, TRANSPOSED)
    tl.store(H_ptr + entry, CONSTRAIN(theta, n, N, OPTIONS), mask=inside)


@triton.jit
def _raw_gradient_part(
    draw_ptr, z, dlogits, scale, inverse_rms, t, T, P, OFFSET: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """Stores a part of draw; returns its share of ``Σ z dz``, ``[BT]``, and of the two parameter sums, ``[PADDED]``."""
    p = tl.arange(0, PADDED)
    inside = (t[:, None] < T) & (p[None, :] < SIZE)
    # What a gate or a constraint says of the padding has no meaning, and might be NaN.
    dlogits = tl.where(inside, dlogits, 0.0)
    dz = dlogits * scale[None, :]
    tl.store(draw_ptr + t[:, None] * (P + 1) + (OFFSET + p[None, :]), dz * inverse_rms[:, None], mask=inside)
    return tl.sum(z * dz, 1), tl.sum(dlogits, 0), tl.sum(z * dlogits, 0)


@triton.jit
def _store_partial(
    partial_ptr, dbase, dscale, P, OFFSET: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """Row ``program`` of ``[programs, 2, P]``: this program's sums for base, and for scale by coordinate."""
    p = tl.arange(0, PADDED)
    row = tl.program_id(0) * (2 * P) + OFFSET + p
    tl.store(partial_ptr + row, dbase, mask=p < SIZE)
    tl.store(partial_ptr + row + P, dscale, mask=p < SIZE)


@triton.jit
def _coefficients_backward_kernel(
    raw_ptr, base_ptr, scale_ptr, dpre_ptr, dpost_ptr, dH_ptr, draw_ptr, partial_ptr, T, width, tiles, post_gain,
    PRE: tl.constexpr, PRE_OPTIONS: tl.constexpr, POST: tl.constexpr, POST_OPTIONS: tl.constexpr,
    CONSTRAIN: tl.constexpr, OPTIONS: tl.constexpr,
    n: tl.constexpr, N: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr, STARTS: tl.constexpr,
    NORM_EPS: tl.constexpr, OUTSIDE: tl.constexpr, TRANSPOSED: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    P: tl.constexpr = SIZES[0] + SIZES[1] + SIZES[2]
    POST_AT: tl.constexpr = SIZES[0]
    THETA_AT: tl.constexpr = SIZES[0] + SIZES[1]
    i = tl.arange(0, N)
    pre_scale = _scale_of_coordinate(scale_ptr, SIZES[0], PADDED[0], 0, (0,))
    post_scale = _scale_of_coordinate(scale_ptr, SIZES[1], PADDED[1], 1, (0,))
    theta_scale = _scale_of_coordinate(scale_ptr, SIZES[2], PADDED[2], 2, STARTS)
    pre_dbase = tl.zeros_like(pre_scale)
    pre_dscale = tl.zeros_like(pre_scale)
    post_dbase = tl.zeros_like(post_scale)
    post_dscale = tl.zeros_like(post_scale)
    theta_dbase = tl.zeros_like(theta_scale)
    theta_dscale = tl.zeros_like(theta_scale)

    # A program takes several neighbouring tiles, so that few partial sums are left to add.
    for tile in range(tiles):
        t = (tl.program_id(0).to(tl.int64) * tiles + tile) * BT + tl.arange(0, BT)
        vector_entry = t[:, None] * n + i[None, :]
        vector_inside = (t[:, None] < T) & (i[None, :] < n)
        inverse_rms, slope = _inverse_rms(raw_ptr, t, T, P, width, NORM_EPS, OUTSIDE)

        z, logits = _logits_part(raw_ptr, base_ptr, inverse_rms, pre_scale, t, T, P, 0, SIZES[0], PADDED[0])
        dpre = tl.load(dpre_ptr + vector_entry, mask=vector_inside, other=0.0)
        z_dz, dbase, dscale = _raw_gradient_part(
            draw_ptr, z, PRE(logits, dpre, n, N, PRE_OPTIONS), pre_scale, inverse_rms, t, T, P, 0, SIZES[0], PADDED[0]
        )
        total = z_dz
        pre_dbase += dbase
        pre_dscale += dscale

        z, logits = _logits_part(raw_ptr, base_ptr, inverse_rms, post_scale, t, T, P, POST_AT, SIZES[1], PADDED[1])
        dpost = tl.load(dpost_ptr + vector_entry, mask=vector_inside, other=0.0) * post_gain
        dlogits = POST(logits, dpost, n, N, POST_OPTIONS)
        z_dz, dbase, dscale = _raw_gradient_part(
            draw_ptr, z, dlogits, post_scale, inverse_rms, t, T, P, POST_AT, SIZES[1], PADDED[1]
        )
        total += z_dz
        post_dbase += dbase
        post_dscale += dscale

        z, theta = _logits_part(raw_ptr, base_ptr, inverse_rms, theta_scale, t, T, P, THETA_AT, SIZES[2], PADDED[2])
        entry, inside = matrix_entries(t, T, n, N, TRANSPOSED)
        dtheta = CONSTRAIN(theta, tl.load(dH_ptr + entry, mask=inside, other=0.0), n, N, OPTIONS)
        z_dz, dbase, dscale = _raw_gradient_part(
            draw_ptr, z, dtheta, theta_scale, inverse_rms, t, T, P, THETA_AT, SIZES[2], PADDED[2]
        )
        total += z_dz
        theta_dbase += dbase
        theta_dscale += dscale

        tl.store(draw_ptr + t * (P + 1) + P, slope * total, mask=t < T)

    _store_partial(partial_ptr, pre_dbase, pre_dscale, P, 0, SIZES[0], PADDED[0])
    _store_partial(partial_ptr, post_dbase, post_dscale, P, POST_AT, SIZES[1], PADDED[1])
    _store_partial(partial_ptr, theta_dbase, theta_dscale, P, THETA_AT, SIZES[2], PADDED[2])


@triton.jit
def _parameter_sums_kernel(
    partial_ptr, dbase_ptr, dscale_ptr, programs,
    P: tl.constexpr, STARTS: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Adds ``[programs, 2, P]`` partial sums in a fixed order; each program finishes one coordinate group."""
    group = tl.program_id(0)
    # STARTS ends with P: group g is STARTS[g] … STARTS[g + 1].
    start, stop = 0, 0
    for k in tl.static_range(len(STARTS) - 1):
        start = tl.where(group == k, STARTS[k], start)
        stop = tl.where(group == k, STARTS[k + 1], stop)
    p = start + tl.arange(0, WIDEST)
    row = tl.arange(0, ROWS)
    real: tl.constexpr = partial_ptr.dtype.element_ty
    base_sums = tl.zeros([ROWS, WIDEST], real)
    scale_sums = tl.zeros([ROWS, WIDEST], real)
    for first in range(0, programs, ROWS):
        inside = (first + row[:, None] < programs) & (p[None, :] < stop)
        entry = (first + row[:, None]) * (2 * P) + p[None, :]
        base_sums += tl.load(partial_ptr + entry, mask=inside, other=0.0)
        scale_sums += tl.load(partial_ptr + entry + P, mask=inside, other=0.0)
    tl.store(dbase_ptr + p, tl.sum(base_sums, 0), mask=p < stop)
    tl.store(dscale_ptr + group, tl.sum(tl.sum(scale_sums, 0), 0))
