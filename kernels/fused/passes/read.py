"""``u = preᵀ x``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.tuning import channel_tile


@triton.jit
def _read_kernel(x_ptr, pre_ptr, u_ptr, T, C, n: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (t[:, None] < T) & (c[None, :] < C)
    u = tl.zeros([BT, BC], pre_ptr.dtype.element_ty)
    for j in tl.static_range(n):
        pre = tl.load(pre_ptr + t * n + j, mask=t < T, other=0.0)
        x = tl.load(x_ptr + (t[:, None] * n + j) * C + c[None, :], mask=inside, other=0.0)
        u += pre[:, None] * x.to(u.dtype)
    tl.store(u_ptr + t[:, None] * C + c[None, :], u.to(u_ptr.dtype.element_ty), mask=inside)


def read(x: Tensor, pre: Tensor) -> Tensor:
    """``u [T, C]`` in the dtype of x from ``x [T, n, C]`` and ``pre [T, n]``, both contiguous."""
    T, n, C = x.shape
    u = x.new_empty(T, C)
    BC = channel_tile(C, 512)
    BT = 2048 // BC if T > 1024 else max(1, 512 // BC)
    launch(_read_kernel, (triton.cdiv(T, BT), triton.cdiv(C, BC)), x, pre, u, T, C, n=n, BT=BT, BC=BC)
    return u
