"""Device functions of the gates, whose formulas are in ``hyperconn.gates``: logits to weights, and back.

See ``DevicePair``. Weights are ``[BT, N]``, logits ``[BT, PP]``: n of them, or n×n row by row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import flat_from_square, square_from_flat


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))`` of a tile, without overflow and with full relative precision on both sides."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def sigmoid_derivative(x):
    """``σ(x) σ(-x)`` of a tile; no difference of nearly equal numbers."""
    small = tl.exp(-tl.abs(x))
    return small / ((1.0 + small) * (1.0 + small))


@triton.jit
def softmax_last(logits, n: tl.constexpr):
    """Softmax over the last axis of ``[..., N]``, the first n entries; the padding gets weight 0."""
    last: tl.constexpr = len(logits.shape) - 1
    N: tl.constexpr = logits.shape[last]
    column = tl.arange(0, N)
    inside = column[None, None, :] < n if last == 2 else column[None, :] < n
    masked = tl.where(inside, logits, float("-inf"))
    weights = tl.exp(masked - tl.max(masked, last, keep_dims=True))
    return weights / tl.sum(weights, last, keep_dims=True)


@triton.jit
def softmax_last_backward(S, dS):
    """Gradient of the logits from that of the softmax S over the last axis."""
    last: tl.constexpr = len(S.shape) - 1
    return S * (dS - tl.sum(S * dS, last, keep_dims=True))


@triton.jit
def _sigmoid_forward(logits, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return OPTIONS[0] * sigmoid(logits)


@triton.jit
def _sigmoid_backward(logits, dweights, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return OPTIONS[0] * dweights * sigmoid_derivative(logits)


@triton.jit
def _softmax_forward(logits, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return softmax_last(logits, n)


@triton.jit
def _softmax_backward(logits, dweights, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return softmax_last_backward(softmax_last(logits, n), dweights)


@triton.jit
def _linear_forward(logits, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return logits


@triton.jit
def _linear_backward(logits, dweights, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return dweights


@triton.jit
def _row_softmax_forward(logits, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    S = softmax_last(square_from_flat(logits, n, N), n)
    row = tl.arange(0, N)
    return tl.sum(tl.where(row[None, :, None] < n, S, 0.0), 1) / n


@triton.jit
def _row_softmax_backward(logits, dweights, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    S = softmax_last(square_from_flat(logits, n, N), n)
    return flat_from_square(softmax_last_backward(S, (dweights / n)[:, None, :]), n, N, logits.shape[1])


@triton.jit
def _column_softmax_forward(logits, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    # Columns become rows; padding columns then are rows, to be left out of the sum.
    S = softmax_last(tl.permute(square_from_flat(logits, n, N), (0, 2, 1)), n)
    column = tl.arange(0, N)
    return tl.sum(tl.where(column[None, :, None] < n, S, 0.0), 1)


@triton.jit
def _column_softmax_backward(logits, dweights, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    S = softmax_last(tl.permute(square_from_flat(logits, n, N), (0, 2, 1)), n)
    transposed = softmax_last_backward(S, dweights[:, None, :])
    return flat_from_square(tl.permute(transposed, (0, 2, 1)), n, N, logits.shape[1])


SIGMOID = DevicePair(_sigmoid_forward, _sigmoid_backward, (1.0,))
DOUBLE_SIGMOID = DevicePair(_sigmoid_forward, _sigmoid_backward, (2.0,))
SOFTMAX = DevicePair(_softmax_forward, _softmax_backward)
LINEAR = DevicePair(_linear_forward, _linear_backward)
ROW_SOFTMAX = DevicePair(_row_softmax_forward, _row_softmax_backward)
COLUMN_SOFTMAX = DevicePair(_column_softmax_forward, _column_softmax_backward)
