"""``x' = H x + post yᵀ``, alone or together with the projection of x' that the next layer begins with."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.passes.dots import accumulate_dot
from hyperconn.kernels.fused.passes.project import project
from hyperconn.kernels.fused.tiles import streams_of
from hyperconn.kernels.fused.tuning import accumulator, channel_tile, is_short, power_of_two, splits

# Projections that a program can accumulate while it writes; beyond them the next layer makes a pass of its own.
MAX_FUSED_PROJECTIONS = 128


@triton.jit
def _written_stream(streams, H_ptr, post_ptr, y, t, T, j, n: tl.constexpr):
    """``[BT, BC]``: stream j of x'."""
    post = tl.load(post_ptr + t * n + j, mask=t < T, other=0.0)
    written = post[:, None] * y
    for i in tl.static_range(n):
        h = tl.load(H_ptr + (t * n + j) * n + i, mask=t < T, other=0.0)
        written += h[:, None] * streams[i]
    return written


@triton.jit
def _write_kernel(
    x_ptr, H_ptr, post_ptr, y_ptr, out_ptr, T, C, n: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (t[:, None] < T) & (c[None, :] < C)
    DTYPE: tl.constexpr = H_ptr.dtype.element_ty
    y = tl.load(y_ptr + t[:, None] * C + c[None, :], mask=inside, other=0.0).to(DTYPE)
    streams = streams_of(x_ptr, t, c, T, C, n, DTYPE)
    if n <= 4:
        for j in tl.static_range(n):
            written = _written_stream(streams, H_ptr, post_ptr, y, t, T, j, n).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + (t[:, None] * n + j) * C + c[None, :], written, mask=inside)
    else:  # a loop that stays one: unrolled, n² terms would take the compiler minutes
        for j in range(n):
            written = _written_stream(streams, H_ptr, post_ptr, y, t, T, j, n).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + (t[:, None] * n + j) * C + c[None, :], written, mask=inside)


@triton.jit
def _write_project_kernel(
    x_ptr, H_ptr, post_ptr, y_ptr, fn_ptr, out_ptr, raw_ptr, T, C, LENGTH,
    n: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    split = tl.program_id(1)
    p = tl.arange(0, PP)
    DTYPE: tl.constexpr = raw_ptr.dtype.element_ty
    acc = tl.zeros([BT, PP], DTYPE)
    squares = tl.zeros([BT, BC], DTYPE)
    for start in range(split * LENGTH, tl.minimum((split + 1) * LENGTH, C), BC):
        c = start + tl.arange(0, BC)
        inside = (t[:, None] < T) & (c[None, :] < C)
        y = tl.load(y_ptr + t[:, None] * C + c[None, :], mask=inside, other=0.0).to(DTYPE)
        streams = streams_of(x_ptr, t, c, T, C, n, DTYPE)
        for j in range(n):
            written = _written_stream(streams, H_ptr, post_ptr, y, t, T, j, n).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + (t[:, None] * n + j) * C + c[None, :], written, mask=inside)
            # The next layer sees the streams as they are stored, rounded.
            seen = written.to(DTYPE)
            fn_inside = (p[None, :] < P) & (c[:, None] < C)
            fn = tl.load(fn_ptr + p[None, :] * (n * C) + j * C + c[:, None], mask=fn_inside, other=0.0)
            acc = accumulate_dot(seen, fn.to(DTYPE), acc, SHORT, False)
            squares += seen * seen
    row = (split * T + t) * (P + 1)
    tl.store(raw_ptr + row[:, None] + p[None, :], acc, mask=(t[:, None] < T) & (p[None, :] < P))
    tl.store(raw_ptr + row + P, tl.sum(squares, 1), mask=t < T)


def write(x: Tensor, H: Tensor, post: Tensor, y: Tensor) -> Tensor:
    """``x' [T, n, C]`` in the dtype of x, from ``x``, ``H [T, n, n]``, ``post [T, n]`` and ``y [T, C]``, contiguous."""
    T, n, C = x.shape
    written = torch.empty_like(x)
    BC = channel_tile(C, 256)
    BT = max(1, (8192 if T > 1024 else 1024) // (power_of_two(n) * BC))
    launch(_write_kernel, (triton.cdiv(T, BT), triton.cdiv(C, BC)), x, H, post, y, written, T, C, n=n, BT=BT, BC=BC)
    return written


def write_project(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """x' as ``write`` gives it, and ``project(x', fn)``."""
    (T, n, C), P = x.shape, fn.shape[0]
    if P > MAX_FUSED_PROJECTIONS:
        written = write(x, H, post, y)
        return written, project(written, fn)
    written, dtype = torch.empty_like(x), accumulator(torch.promote_types(x.dtype, fn.dtype))
    PP, BT = power_of_two(max(P, 16)), 16
    BC = channel_tile(C, 64 if n <= 4 else 32)
    token_tiles = triton.cdiv(T, BT)
    count, length = splits(token_tiles, C, BC, fewest_steps=4)
    raw = x.new_empty(count, T, P + 1, dtype=dtype)
    launch(
        _write_project_kernel, (token_tiles, count), x, H, post, y, fn, written, raw, T, C, length,
        n=n, P=P, PP=PP, BT=BT, BC=BC, SHORT=is_short(x.dtype),
    )  # fmt: skip
    return written, raw.sum(0) if count > 1 else raw.squeeze(0)
