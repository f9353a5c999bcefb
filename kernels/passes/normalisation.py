"""One over the root mean square of a token, from its sum of squares."""

from __future__ import annotations

import torch
from torch import Tensor

# A token of a smaller mean square counts as zeros: the gradient holds its power −3/2, which float32 may not.
NEXT_TO_NOTHING = 1e-24


def inverse_rms(square_sum: Tensor, width: int, eps: float, outside: bool = False) -> Tensor:
    """``1 / √(ms + eps)`` with ``ms = square_sum / width``; with eps ``outside`` of the root, ``1 / (√ms + eps)``.

    A token of zeros, or of an RMS below 1e-12, has no direction: without an eps its result is 0, and so is the
    gradient, instead of ``0 · ∞``.

    Args:
        square_sum: ``[..., 1]``, the squares of ``width`` numbers; the result has its shape.

    As often differentiable as one likes, at 0 too.
    """
    mean_square = square_sum / width
    if eps > 0 and not outside:
        return torch.rsqrt(mean_square + eps)
    nothing = mean_square <= (0 if eps > 0 else NEXT_TO_NOTHING)
    root = torch.where(nothing, 1.0, mean_square).sqrt()  # the root of 0 has no derivative, whatever comes of it
    return torch.where(nothing, 1 / eps if eps > 0 else 0.0, 1 / (root + eps))
