"""The passes over the streams that a hyper-connection makes, in plain torch.

Each function is one pass; ``hyperconn.kernels.fused.passes.streaming`` holds the same functions as Triton kernels, and
``hyperconn.kernels.steps`` strings either set together. On the CPU, for these small n, batched matrix products beat
``einsum`` and broadcasting by a wide margin, a product with one row beats the same with one column, and adding in place
beats everything that asks for another block of memory.

Shapes: streams ``[T, n, C]`` for T tokens, one vector a token ``[T, C]``, coefficients ``[T, n]`` and ``[T, n, n]``.
Every operation is differentiable, so that second derivatives work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.kernels.passes.thin_products import blocks_help, sum_of_products, weigh
from hyperconn.kernels.passes.watched import watched

_SHARED = 256  # tokens of a block that two products share, by measurement


def project(x: Tensor, fn: Tensor) -> Tensor:
    """``[T, P + 1]`` from ``x [T, n, C]`` and ``fn [P, n·C]``: ``vec x · fnᵀ``; in the last column, the square sum."""
    flat = x.flatten(1)
    # The norm reads x once; every form of a sum of products writes the products down first.
    return torch.cat([weigh(flat, fn), torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square()], -1)


def read(x: Tensor, pre: Tensor) -> Tensor:
    """``u = preᵀ x``: ``[T, C]`` from ``x [T, n, C]`` and ``pre [T, n]``."""
    u = torch.bmm(pre.unsqueeze(1), x)
    # Not a view, so that the branch may work in place on it.
    return u.squeeze(1) if watched() else u.squeeze_(1)


def write(x: Tensor, H: Tensor, post: Tensor, y: Tensor) -> Tensor:
    """``x' = H x + post yᵀ``: ``[T, n, C]`` from ``x``, ``H [T, n, n]``, ``post [T, n]`` and ``y [T, C]``."""
    return _add_product(torch.bmm(H, x), post.unsqueeze(-1), y.unsqueeze(1))


def write_project(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """``write`` to x', and ``project`` of x'."""
    written = write(x, H, post, y)
    return written, project(written, fn)


def write_backward(G: Tensor, post: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y, ``[T, C]``, and of post, ``[T, n]``, from that of x', ``G [T, n, C]``."""
    dy = torch.bmm(post.unsqueeze(1), G).squeeze(1)
    dpost = torch.bmm(y.unsqueeze(1), G.mT).squeeze(1)
    return dy, dpost


def coefficients_backward(x: Tensor, G: Tensor | None, du: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of H, ``G xᵀ [T, n, n]``, and of pre, ``x du [T, n]``; None where what they come from is None."""
    if G is None or du is None or not blocks_help(x, _SHARED):
        dH = None if G is None else torch.bmm(G, x.mT)
        dpre = None if du is None else torch.bmm(du.unsqueeze(1), x.mT).squeeze(1)
        return dH, dpre
    # The second product finds the block of streams in the cache that the first one read.
    dHs, dpres = [], []
    for streams, rows, row in zip(*(tensor.split(_SHARED) for tensor in (x, G, du)), strict=True):
        dHs.append(torch.bmm(rows, streams.mT))
        dpres.append(torch.bmm(row.unsqueeze(1), streams.mT).squeeze(1))
    return torch.cat(dHs), torch.cat(dpres)


def project_backward(
    x: Tensor,
    mixing: tuple[Tensor, Tensor] | None,
    reading: tuple[Tensor, Tensor] | None,
    projection: tuple[Tensor, Tensor] | None,
    needs_x: bool = True,
    needs_fn: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """The whole gradient of the streams, written once, ``Hᵀ G + pre duᵀ + draw · fn + 2 dss x``, and that of fn.

    Args:
        x: ``[T, n, C]``.
        mixing: ``H [T, n, n]`` and the gradient ``G [T, n, C]`` of what was written, or None.
        reading: ``pre [T, n]`` and the gradient ``du [T, C]`` of what was read, or None.
        projection: ``fn [P, n·C]`` and the gradient ``draw [T, P + 1]`` of what was projected, or None.
        needs_x, needs_fn: which gradients are wanted; the others, and those without a term, are None.
    """
    dx = dfn = None
    if mixing is not None and needs_x:
        H, G = mixing
        dx = torch.bmm(H.mT, G)
    if projection is not None:
        fn, draw = projection
        dz, dss = draw.split([fn.shape[0], 1], -1)
        dfn = sum_of_products(dz, x.flatten(1)) if needs_fn else None
        if needs_x:
            dx = (dz @ fn).view_as(x) if dx is None else _add_projection(dx, dz, fn)
            dx = _add_multiple(dx, dss.unsqueeze(-1), x, 2.0)
    if reading is not None and needs_x:
        pre, du = reading
        outer = (pre.unsqueeze(-1), du.unsqueeze(1))
        dx = torch.bmm(*outer) if dx is None else _add_product(dx, *outer)
    return dx, dfn


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` for a fresh ``total``, whose memory is reused."""
    return torch.baddbmm(total, a, b) if watched() else total.baddbmm_(a, b)


def _add_projection(total: Tensor, dz: Tensor, fn: Tensor) -> Tensor:
    """``total + dz @ fn``, likewise."""
    flat = total.flatten(1)
    return (torch.addmm(flat, dz, fn) if watched() else flat.addmm_(dz, fn)).view_as(total)


def _add_multiple(total: Tensor, factor: Tensor, x: Tensor, times: float) -> Tensor:
    """``total + times · factor · x``, likewise."""
    if watched():
        return torch.addcmul(total, factor, x, value=times)
    return total.addcmul_(factor, x, value=times)
