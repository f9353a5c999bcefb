"""The operations of a hyper-connection, one by one, in plain torch: the readable reference.

What a layer runs is ``hyperconn.kernels.steps``; the learned head and the fractional form run on these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.kernels.passes.normalisation import inverse_rms


def mean_square_projection(x: Tensor, fn: Tensor, eps: float) -> Tensor:
    """``(vec x · fnᵀ) / r`` with ``r = sqrt(mean(vec x²) + eps)``.

    Args:
        x: ``[..., n, C]``.
        fn: ``[P, n·C]``, same dtype.
        eps: added to the mean square.

    Returns:
        ``[..., P]``.

    Source: mHC, arXiv 2512.24880, Eq. 14–16.
    """
    flat = x.flatten(-2)
    square_sum = torch.linalg.vecdot(flat, flat).unsqueeze(-1)
    return torch.nn.functional.linear(flat, fn) * inverse_rms(square_sum, flat.shape[-1], eps)


def read_streams(x: Tensor, pre: Tensor) -> Tensor:
    """``u = preᵀ x``.

    Args:
        x: ``[..., n, C]``.
        pre: ``[..., n]`` for one vector, or ``[..., n, k]`` for k of them; the batch shape of x.

    Returns:
        ``[..., C]``, or ``[..., k, C]``.
    """
    if pre.dim() == x.dim():
        return pre.mT @ x
    return (pre.unsqueeze(-2) @ x).squeeze(-2)


def write_streams(x: Tensor, H: Tensor, post: Tensor, y: Tensor) -> Tensor:
    """``x' = H x + post yᵀ``.

    Args:
        x: ``[..., n, C]``.
        H: ``[..., n, n]``, the batch shape of x.
        post: ``[..., n]``, likewise.
        y: ``[..., C]``, written to every stream; or ``[..., n, C]``, one row a stream.

    Returns:
        ``[..., n, C]``.
    """
    if y.dim() == x.dim():
        return torch.addcmul(H @ x, post.unsqueeze(-1), y)
    return torch.addcmul(H @ x, post.unsqueeze(-1), y.unsqueeze(-2))
