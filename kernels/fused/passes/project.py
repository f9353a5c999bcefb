"""``raw = [vec x · fnᵀ, vec x · vec x]``: one pass over the streams."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.passes.dots import accumulate_dot
from hyperconn.kernels.fused.tuning import accumulator, is_short, power_of_two, splits


@triton.jit
def _project_kernel(
    x_ptr, fn_ptr, raw_ptr, T, K, LENGTH,
    P: tl.constexpr, PB: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    split = tl.program_id(1)
    p = tl.program_id(2) * PB + tl.arange(0, PB)
    acc = tl.zeros([BT, PB], raw_ptr.dtype.element_ty)
    squares = tl.zeros([BT, BK], raw_ptr.dtype.element_ty)
    for start in range(split * LENGTH, tl.minimum((split + 1) * LENGTH, K), BK):
        k = start + tl.arange(0, BK)
        inside = (t[:, None] < T) & (k[None, :] < K)
        x = tl.load(x_ptr + t[:, None] * K + k[None, :], mask=inside, other=0.0).to(acc.dtype)
        fn = tl.load(fn_ptr + p[None, :] * K + k[:, None], mask=(p[None, :] < P) & (k[:, None] < K), other=0.0)
        acc = accumulate_dot(x, fn.to(acc.dtype), acc, SHORT, False)
        squares += x * x
    row = (split * T + t) * (P + 1)
    tl.store(raw_ptr + row[:, None] + p[None, :], acc, mask=(t[:, None] < T) & (p[None, :] < P))
    if tl.program_id(2) == 0:
        tl.store(raw_ptr + row + P, tl.sum(squares, 1), mask=t < T)


def project(x: Tensor, fn: Tensor) -> Tensor:
    """``raw [T, P + 1]`` of ``x [T, n, C]`` and ``fn [P, n·C]``, both contiguous.

    float32, or float64 if x or fn is; the same bits in every run.
    """
    (T, n, C), P = x.shape, fn.shape[0]
    K, dtype = n * C, accumulator(torch.promote_types(x.dtype, fn.dtype))
    PB = min(power_of_two(max(P, 16)), 128)
    BT = 16 if T <= 1024 else 32 if PB > 64 else 64
    BK = min(max(16, power_of_two(K)), 64)
    token_tiles = triton.cdiv(T, BT)
    count, length = splits(token_tiles, K, BK, fewest_steps=8)
    raw = x.new_empty(count, T, P + 1, dtype=dtype)
    launch(
        _project_kernel, (token_tiles, count, triton.cdiv(P, PB)), x, fn, raw, T, K, length,
        P=P, PB=PB, BT=BT, BK=BK, SHORT=is_short(x.dtype),
        num_warps=8 if BT > 16 or PB > 32 else 4,
        num_stages=3 if PB <= 64 else 2,  # three would be more shared memory than AMD has
    )  # fmt: skip
    return raw.sum(0) if count > 1 else raw.squeeze(0)
