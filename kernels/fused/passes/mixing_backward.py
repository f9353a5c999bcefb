"""``dH = G xᵀ`` and ``dpre = x du``: the gradients of what was applied to the streams, in one pass over them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.tiles import streams_of, zeros
from hyperconn.kernels.fused.tuning import accumulator, channel_tile, splits


@triton.jit
def _mixing_backward_kernel(
    x_ptr, G_ptr, du_ptr, dH_ptr, dpre_ptr, T, C, LENGTH,
    n: tl.constexpr, ROWS: tl.constexpr, HAS_G: tl.constexpr, HAS_DU: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    split = tl.program_id(1)
    first = tl.program_id(2) * ROWS
    DTYPE: tl.constexpr = dpre_ptr.dtype.element_ty
    dH = zeros(ROWS * n, [BT], DTYPE)
    dpre = zeros(n, [BT], DTYPE)
    for start in range(split * LENGTH, tl.minimum((split + 1) * LENGTH, C), BC):
        c = start + tl.arange(0, BC)
        inside = (t[:, None] < T) & (c[None, :] < C)
        streams = streams_of(x_ptr, t, c, T, C, n, DTYPE)
        if HAS_G:
            grown = ()
            for i in tl.static_range(ROWS):
                G_inside = inside & (first + i < n)
                G = tl.load(G_ptr + (t[:, None] * n + first + i) * C + c[None, :], mask=G_inside, other=0.0).to(DTYPE)
                for j in tl.static_range(n):
                    grown = grown + (dH[i * n + j] + tl.sum(G * streams[j], 1),)  # noqa: RUF005
            dH = grown
        if HAS_DU:
            du = tl.load(du_ptr + t[:, None] * C + c[None, :], mask=inside & (first == 0), other=0.0).to(DTYPE)
            grown = ()
            for j in tl.static_range(n):
                grown = grown + (dpre[j] + tl.sum(du * streams[j], 1),)  # noqa: RUF005
            dpre = grown
    if HAS_G:
        for i in tl.static_range(ROWS):
            for j in tl.static_range(n):
                to = dH_ptr + ((split * T + t) * n + first + i) * n + j
                tl.store(to, dH[i * n + j], mask=(t < T) & (first + i < n))
    if HAS_DU:
        for j in tl.static_range(n):
            tl.store(dpre_ptr + (split * T + t) * n + j, dpre[j], mask=(t < T) & (first == 0))


def mixing_backward(x: Tensor, G: Tensor | None, du: Tensor | None) -> tuple[Tensor, Tensor]:
    """``dH [T, n, n]`` and ``dpre [T, n]`` in float32 (or float64 like x), from ``x, G [T, n, C]`` and ``du [T, C]``.

    Where G or du is None, the gradient that comes from it has no tokens, ``[0, …]``.
    """
    T, n, C = x.shape
    rows = n if n <= 8 else 4
    BC = channel_tile(C, 256 if n <= 4 else 128)
    BT = 4 if T > 1024 else 1
    token_tiles, blocks = triton.cdiv(T, BT), triton.cdiv(n, rows) if G is not None else 1
    count, length = splits(token_tiles * blocks, C, BC, fewest_steps=2)
    dH = x.new_empty(count, T if G is not None else 0, n, n, dtype=accumulator(x.dtype))
    dpre = x.new_empty(count, T if du is not None else 0, n, dtype=accumulator(x.dtype))
    launch(
        _mixing_backward_kernel, (token_tiles, count, blocks),
        x, x if G is None else G, x if du is None else du, dH, dpre, T, C, length,
        n=n, ROWS=rows, HAS_G=G is not None, HAS_DU=du is not None, BT=BT, BC=BC,
    )  # fmt: skip
    if count == 1:
        return dH.squeeze(0), dpre.squeeze(0)
    return dH.sum(0), dpre.sum(0)
