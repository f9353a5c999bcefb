"""The whole gradient of the streams, written once: ``dx = Hᵀ G + pre duᵀ + dz · fn + 2 dss x``; and ``dfn = dzᵀ x``.

A program owns some channels of all n streams and walks over tokens, so that it can keep its part of dfn in registers
meanwhile. Where that part is too large, with many coordinates or streams, dfn gets a kernel of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.passes.dots import accumulate_dot
from hyperconn.kernels.fused.tiles import streams_of, zeros
from hyperconn.kernels.fused.tuning import accumulator, channel_tile, is_short, power_of_two, splits

# Rows of dfn, padded and over all streams, that a program can keep beside what it works on without spilling.
_LARGEST_SHARE = 128


@triton.jit
def _load_dz(draw_ptr, t, T, block, P: tl.constexpr, PB: tl.constexpr):
    """``[BT, PB]``: a block of the gradient of the projections."""
    p = block * PB + tl.arange(0, PB)
    return tl.load(draw_ptr + t[:, None] * (P + 1) + p[None, :], mask=(t[:, None] < T) & (p[None, :] < P), other=0.0)


@triton.jit
def _load_fn(fn_ptr, c, j, C, block, n: tl.constexpr, P: tl.constexpr, PB: tl.constexpr):
    """``[PB, BC]``: a block of the prediction weights of stream j."""
    p = block * PB + tl.arange(0, PB)
    return tl.load(
        fn_ptr + p[:, None] * (n * C) + j * C + c[None, :], mask=(p[:, None] < P) & (c[None, :] < C), other=0.0
    )


@triton.jit
def _applied_terms(
    dx, written, H_ptr, du, pre_ptr, t, j, T, n: tl.constexpr, HAS_G: tl.constexpr, HAS_DU: tl.constexpr
):  # fmt: skip
    """``dx + Hᵀ G + pre duᵀ`` for stream j."""
    if HAS_DU:
        pre = tl.load(pre_ptr + t * n + j, mask=t < T, other=0.0)
        dx += pre[:, None] * du
    if HAS_G:
        for i in tl.static_range(n):
            h = tl.load(H_ptr + (t * n + i) * n + j, mask=t < T, other=0.0)
            dx += h[:, None] * written[i]
    return dx


@triton.jit
def _streams_backward_kernel(
    x_ptr, G_ptr, H_ptr, du_ptr, pre_ptr, fn_ptr, draw_ptr, dx_ptr, dfn_ptr, T, C, LENGTH,
    n: tl.constexpr, P: tl.constexpr, PB: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_G: tl.constexpr, HAS_DU: tl.constexpr, HAS_RAW: tl.constexpr, WITH_DFN: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    split = tl.program_id(1).to(tl.int64)
    p = tl.arange(0, PB)
    DTYPE: tl.constexpr = dfn_ptr.dtype.element_ty
    dfn = ()
    if WITH_DFN:
        dfn = zeros(n, [PB, BC], DTYPE)
    for start in range(split * LENGTH, tl.minimum((split + 1) * LENGTH, T), BT):
        t = (start + tl.arange(0, BT)).to(tl.int64)
        inside = (t[:, None] < T) & (c[None, :] < C)
        written = ()
        if HAS_G:
            written = streams_of(G_ptr, t, c, T, C, n, DTYPE)
        du = tl.zeros([BT, BC], DTYPE)
        if HAS_DU:
            du = tl.load(du_ptr + t[:, None] * C + c[None, :], mask=inside, other=0.0).to(DTYPE)
        dss = tl.zeros([BT], DTYPE)
        if HAS_RAW:
            dss = tl.load(draw_ptr + t * (P + 1) + P, mask=t < T, other=0.0)
        if WITH_DFN:
            dz = _load_dz(draw_ptr, t, T, 0, P, PB)
            grown = ()
            for j in tl.static_range(n):
                at = (t[:, None] * n + j) * C + c[None, :]
                x = tl.load(x_ptr + at, mask=inside, other=0.0).to(DTYPE)
                fn = _load_fn(fn_ptr, c, j, C, 0, n, P, PB).to(DTYPE)
                dx = accumulate_dot(dz, fn, (2.0 * dss)[:, None] * x, False, False)
                dx = _applied_terms(dx, written, H_ptr, du, pre_ptr, t, j, T, n, HAS_G, HAS_DU)
                tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
                grown = grown + (accumulate_dot(tl.trans(dz), x, dfn[j], False, SHORT),)  # noqa: RUF005
            dfn = grown
        else:
            for j in range(n):
                at = (t[:, None] * n + j) * C + c[None, :]
                dx = tl.zeros([BT, BC], DTYPE)
                if HAS_RAW:
                    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(DTYPE)
                    dx = (2.0 * dss)[:, None] * x
                    for block in range(BLOCKS):
                        dz = _load_dz(draw_ptr, t, T, block, P, PB)
                        fn = _load_fn(fn_ptr, c, j, C, block, n, P, PB).to(DTYPE)
                        dx = accumulate_dot(dz, fn, dx, False, False)
                dx = _applied_terms(dx, written, H_ptr, du, pre_ptr, t, j, T, n, HAS_G, HAS_DU)
                tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if WITH_DFN:
        for j in tl.static_range(n):
            to = (split * P + p[:, None]) * (n * C) + j * C + c[None, :]
            tl.store(dfn_ptr + to, dfn[j], mask=(p[:, None] < P) & (c[None, :] < C))


@triton.jit
def _weights_backward_kernel(
    x_ptr, draw_ptr, dfn_ptr, T, K, LENGTH,
    P: tl.constexpr, PB: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    split = tl.program_id(1).to(tl.int64)
    p = tl.program_id(2) * PB + tl.arange(0, PB)
    acc = tl.zeros([PB, BK], dfn_ptr.dtype.element_ty)
    for start in range(split * LENGTH, tl.minimum((split + 1) * LENGTH, T), BT):
        t = (start + tl.arange(0, BT)).to(tl.int64)
        dz_inside = (t[None, :] < T) & (p[:, None] < P)
        dz = tl.load(draw_ptr + t[None, :] * (P + 1) + p[:, None], mask=dz_inside, other=0.0)
        inside = (t[:, None] < T) & (k[None, :] < K)
        x = tl.load(x_ptr + t[:, None] * K + k[None, :], mask=inside, other=0.0).to(acc.dtype)
        acc = accumulate_dot(dz, x, acc, False, SHORT)
    to = (split * P + p[:, None]) * K + k[None, :]
    tl.store(dfn_ptr + to, acc, mask=(p[:, None] < P) & (k[None, :] < K))


def project_backward(
    x: Tensor,
    H: Tensor | None,
    G: Tensor | None,
    pre: Tensor | None,
    du: Tensor | None,
    fn: Tensor | None,
    draw: Tensor | None,
    needs_x: bool,
    needs_fn: bool,
) -> tuple[Tensor, Tensor]:
    """``dx [T, n, C]`` in the dtype of x and ``dfn [P, n·C]`` in that of fn.

    Pairs that are None drop their term: ``H [T, n, n]`` and ``G [T, n, C]``, ``pre [T, n]`` and ``du [T, C]``, ``fn``
    and ``draw [T, P + 1]``. What is not needed comes back without tokens or rows, ``[0, …]``.
    """
    T, n, C = x.shape
    P = 1 if fn is None else fn.shape[0]
    needs_fn = needs_fn and fn is not None
    PB = min(power_of_two(max(P, 16)), 64)
    BC = channel_tile(C, 64)
    together = needs_x and needs_fn and P <= PB and power_of_two(n) * PB <= _LARGEST_SHARE
    dx = x.new_empty(T if needs_x else 0, n, C)
    dfn = None
    if needs_x:
        BT = 16
        programs = triton.cdiv(C, BC)
        count, length = splits(programs, T, BT, fewest_steps=16)
        dfn = x.new_empty(count if together else 0, P, n * C, dtype=accumulator(x.dtype))
        given = (x if tensor is None else tensor for tensor in (G, H, du, pre, fn, draw))
        launch(
            _streams_backward_kernel, (programs, count), x, *given, dx, dfn, T, C, length,
            n=n, P=P, PB=PB, BLOCKS=triton.cdiv(P, PB), BT=BT, BC=BC, SHORT=is_short(x.dtype),
            HAS_G=G is not None, HAS_DU=du is not None, HAS_RAW=draw is not None, WITH_DFN=together,
            num_warps=8,
            num_stages=2 if P <= PB else 1,  # blocks of coordinates held ahead are more than AMD has memory for
        )  # fmt: skip
    if not needs_fn:
        return dx, x.new_empty(0, n * C)
    assert fn is not None and draw is not None
    if not together:
        dfn = _weights_backward(x, draw, P)
    assert dfn is not None
    total = dfn.sum(0) if len(dfn) > 1 else dfn.squeeze(0)
    return dx, total.to(fn.dtype)


def _weights_backward(x: Tensor, draw: Tensor, P: int) -> Tensor:
    """``[splits, P, n·C]``: parts of dfn, each over some of the tokens."""
    T, K = x.shape[0], x.shape[1] * x.shape[2]
    PB, BT = min(power_of_two(max(P, 16)), 128), 32
    BK = channel_tile(K, 128 if PB <= 32 else 64)
    programs = triton.cdiv(K, BK) * triton.cdiv(P, PB)
    count, length = splits(programs, T, BT, fewest_steps=8)
    dfn = x.new_empty(count, P, K, dtype=accumulator(x.dtype))
    launch(
        _weights_backward_kernel, (triton.cdiv(K, BK), count, triton.cdiv(P, PB)), x, draw, dfn, T, K, length,
        P=P, PB=PB, BT=BT, BK=BK, SHORT=is_short(x.dtype), num_warps=8,
    )  # fmt: skip
    return dfn
