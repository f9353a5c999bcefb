"""``dy = postᵀ G`` and ``dpost = G y``: one pass over the gradient of what was written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.tiles import zeros
from hyperconn.kernels.fused.tuning import channel_tile, power_of_two, splits


@triton.jit
def _write_backward_kernel(
    G_ptr, post_ptr, y_ptr, dy_ptr, dpost_ptr, T, C, LENGTH, n: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    split = tl.program_id(1)
    DTYPE: tl.constexpr = post_ptr.dtype.element_ty
    sums = zeros(n, [BT, BC], DTYPE)
    for start in range(split * LENGTH, tl.minimum((split + 1) * LENGTH, C), BC):
        c = start + tl.arange(0, BC)
        inside = (t[:, None] < T) & (c[None, :] < C)
        y = tl.load(y_ptr + t[:, None] * C + c[None, :], mask=inside, other=0.0).to(DTYPE)
        dy = tl.zeros([BT, BC], DTYPE)
        grown = ()
        for j in tl.static_range(n):
            post = tl.load(post_ptr + t * n + j, mask=t < T, other=0.0)
            G = tl.load(G_ptr + (t[:, None] * n + j) * C + c[None, :], mask=inside, other=0.0).to(DTYPE)
            dy += post[:, None] * G
            grown = grown + (sums[j] + G * y,)  # noqa: RUF005
        sums = grown
        tl.store(dy_ptr + t[:, None] * C + c[None, :], dy.to(dy_ptr.dtype.element_ty), mask=inside)
    for j in tl.static_range(n):
        tl.store(dpost_ptr + (split * T + t) * n + j, tl.sum(sums[j], 1), mask=t < T)


def write_backward(G: Tensor, post: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``dy [T, C]`` in the dtype of y and ``dpost [T, n]``, from ``G [T, n, C]``, ``post [T, n]`` and ``y [T, C]``."""
    T, n, C = G.shape
    dy = torch.empty_like(y)
    BC = channel_tile(C, 256)
    BT = max(1, 4096 // (power_of_two(n) * BC)) if T > 1024 else 1
    token_tiles = triton.cdiv(T, BT)
    count, length = splits(token_tiles, C, BC)
    dpost = post.new_empty(count, T, n)
    launch(_write_backward_kernel, (token_tiles, count), G, post, y, dy, dpost, T, C, length, n=n, BT=BT, BC=BC)
    return dy, dpost.sum(0) if count > 1 else dpost.squeeze(0)
