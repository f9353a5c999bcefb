"""Tiles in registers: streams, windows of a flat vector, square matrices in it, saturation, the limits of a dtype.

Everything is selected by masks and sums over one axis: registers cannot be indexed by what is computed at run time. A
selection is a ``where``, never a product with 0 and 1, so that NaN in one place does not spread to others.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Limits of the two dtypes a tile can have, as `constexpr` globals that device functions may read.
_EPS32, _EPS64 = tl.constexpr(2.0**-23), tl.constexpr(2.0**-52)
_TINY32, _TINY64 = tl.constexpr(2.0**-126), tl.constexpr(2.0**-1022)
_MAX32, _MAX64 = tl.constexpr((2.0 - 2.0**-23) * 2.0**127), tl.constexpr((2.0 - 2.0**-52) * 2.0**1023)


@triton.jit
def machine_epsilon(like):
    """``[1, 1, 1]``: ``finfo(like.dtype).eps``."""
    return tl.full([1, 1, 1], _EPS64 if like.dtype == tl.float64 else _EPS32, like.dtype)


@triton.jit
def smallest_normal(like):
    """``[1, 1, 1]``: ``finfo(like.dtype).tiny``."""
    return tl.full([1, 1, 1], _TINY64 if like.dtype == tl.float64 else _TINY32, like.dtype)


@triton.jit
def largest_finite(like):
    """``[1, 1, 1]``: ``finfo(like.dtype).max``."""
    return tl.full([1, 1, 1], _MAX64 if like.dtype == tl.float64 else _MAX32, like.dtype)


@triton.jit
def zeros(count: tl.constexpr, shape: tl.constexpr, dtype: tl.constexpr):
    """A tuple of ``count`` tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(count):
        tiles = tiles + (tl.zeros(shape, dtype),)  # noqa: RUF005  (what the compiler of kernels can do to tuples)
    return tiles


@triton.jit
def streams_of(x_ptr, t, c, T, C, n: tl.constexpr, dtype: tl.constexpr):
    """The n streams of a tile of tokens t and channels c: a tuple of ``[BT, BC]``."""
    streams = ()
    inside = (t[:, None] < T) & (c[None, :] < C)
    for i in tl.static_range(n):
        x = tl.load(x_ptr + (t[:, None] * n + i) * C + c[None, :], mask=inside, other=0.0)
        streams = streams + (x.to(dtype),)  # noqa: RUF005
    return streams


@triton.jit
def inside_square(n: tl.constexpr, N: tl.constexpr):
    """``[1, N, N]``: True in the n×n corner, False in the padding."""
    i = tl.arange(0, N)
    return (i[None, :, None] < n) & (i[None, None, :] < n)


@triton.jit
def matrix_entries(t, T, n: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr):
    """``[BT, N, N]``: where the matrices t, or their transposes, have their entries in ``[T, n, n]``; and the mask."""
    i = tl.arange(0, N)
    row, column = i[None, :, None], i[None, None, :]
    entry = t[:, None, None] * (n * n) + (column * n + row if TRANSPOSED else row * n + column)
    return entry, (t[:, None, None] < T) & inside_square(n, N)


@triton.jit
def row_of(square, row):
    """``[BT, N]``: row ``row`` of ``square [BT, N, N]``."""
    i = tl.arange(0, square.shape[1])
    return tl.sum(tl.where(i[None, :, None] == row, square, 0.0), 1)


@triton.jit
def take(flat, start, W: tl.constexpr):
    """``[BT, W]``: entries ``start … start + W − 1`` of ``flat [BT, PP]``, zero beyond PP. W is a power of two."""
    BT: tl.constexpr = flat.shape[0]
    PP: tl.constexpr = flat.shape[1]
    w = tl.arange(0, W)
    if PP <= W:
        p = tl.arange(0, PP)
        chosen = p[None, None, :] == start + w[None, :, None]
        return tl.sum(tl.where(chosen, flat[:, None, :], 0.0), 2)
    else:  # noqa: RET505
        # In lines of W the window covers every column once, in one of two neighbouring lines: pick that line column by
        # column, then rotate. No temporary is larger than the tile itself.
        line = (start + ((w - start) & (W - 1))) // W
        a = tl.arange(0, PP // W)
        lines = tl.reshape(flat, [BT, PP // W, W])
        window = tl.sum(tl.where(a[None, :, None] == line[None, None, :], lines, 0.0), 1)
        return _permuted(window, (w + start) & (W - 1))


@triton.jit
def put(values, start, length, PP: tl.constexpr):
    """``[BT, PP]``: ``values[:, :length]`` of ``values [BT, W]`` from ``start`` on, zero elsewhere."""
    BT: tl.constexpr = values.shape[0]
    W: tl.constexpr = values.shape[1]
    w = tl.arange(0, W)
    if PP <= W:
        p = tl.arange(0, PP)
        chosen = (p[None, :, None] == start + w[None, None, :]) & (w[None, None, :] < length)
        return tl.sum(tl.where(chosen, values[:, None, :], 0.0), 2)
    else:  # noqa: RET505
        source = (w - start) & (W - 1)
        line = (start + source) // W
        a = tl.arange(0, PP // W)
        chosen = (a[None, :, None] == line[None, None, :]) & (source[None, None, :] < length)
        return tl.reshape(tl.where(chosen, _permuted(values, source)[:, None, :], 0.0), [BT, PP])


@triton.jit
def _permuted(values, source):
    """``[BT, W]``: entry w is entry ``source[w]`` of ``values [BT, W]``."""
    w = tl.arange(0, values.shape[1])
    return tl.sum(tl.where(w[None, None, :] == source[None, :, None], values[:, None, :], 0.0), 2)


@triton.jit
def square_from_flat(flat, n: tl.constexpr, N: tl.constexpr):
    """``[BT, N, N]``, zero in the padding: the matrix whose n² entries start ``flat [BT, PP]``, row by row."""
    BT: tl.constexpr = flat.shape[0]
    if n == N:
        return tl.reshape(flat, [BT, N, N])
    else:  # noqa: RET505
        i = tl.arange(0, N)
        square = tl.zeros([BT, N, N], flat.dtype)
        for row in range(n):
            # Beyond n the window runs into the next row.
            here = (i[None, :, None] == row) & (i[None, None, :] < n)
            square = tl.where(here, take(flat, row * n, N)[:, None, :], square)
        return square


@triton.jit
def flat_from_square(square, n: tl.constexpr, N: tl.constexpr, PP: tl.constexpr):
    """``[BT, PP]``, zero in the padding: the n² entries of ``square [BT, N, N]``, row by row."""
    BT: tl.constexpr = square.shape[0]
    if n == N:
        return tl.reshape(square, [BT, PP])
    else:  # noqa: RET505
        flat = tl.zeros([BT, PP], square.dtype)
        for row in range(n):
            flat += put(row_of(square, row), row * n, n, PP)
        return flat


@triton.jit
def saturate(square, cap):
    """``square [BT, N, N]`` scaled down where its largest entry exceeds ``cap``; see ``kernels/maps/cayley.py``."""
    return square / _excess(square, cap)


@triton.jit
def saturate_backward(square, d_saturated, cap):
    """Gradient of ``square`` from that of ``saturate(square, cap)``, both ``[BT, N, N]``."""
    excess = _excess(square, cap)
    size = tl.abs(square)
    is_largest = size == _largest(size)
    # The largest entry also sets the scale. Ties share that part, as in torch.
    d_excess = -_total(d_saturated * (square / excess / cap)) / excess
    share = tl.where(_largest(size) >= cap, d_excess / _total(tl.where(is_largest, 1.0, 0.0).to(square.dtype)), 0.0)
    direction = tl.where(square > 0, 1.0, tl.where(square < 0, -1.0, 0.0)).to(square.dtype)
    return d_saturated / excess + tl.where(is_largest, direction * share, 0.0)


@triton.jit
def _excess(square, cap):
    # A division by exactly 1 below the cap.
    ratio = _largest(tl.abs(square)) / cap
    return tl.where(ratio > 1, ratio, 1.0)


@triton.jit
def _largest(square):
    """``[BT, 1, 1]``."""
    return tl.max(tl.max(square, 2, keep_dims=True), 1, keep_dims=True)


@triton.jit
def _total(square):
    """``[BT, 1, 1]``."""
    return tl.sum(tl.sum(square, 2, keep_dims=True), 1, keep_dims=True)
