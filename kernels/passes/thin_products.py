"""Products of many tokens with the few prediction weights, in plain torch.

The matrix ``[T, n·C]`` of the streams is long and wide, that of the weights ``[P, n·C]`` has a few dozen rows: a shape
that the BLAS of a CPU handles badly. oneDNN, which serves convolutions, takes half its time on several threads, and a
convolution of single pixels, one for each token, is this product. Torch asks oneDNN for float32 on more than one thread
only. Elsewhere the operands are cut into blocks of tokens, which caches and threads share better than the whole.

The block sizes were measured with 4,096 tokens of four streams of 768 channels on one thread and on two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import grad

from hyperconn.kernels.passes.watched import watched

_PROJECTED, _SUMMED = 512, 512  # tokens of a block
_ENOUGH = 256  # tokens that are worth the set-up of a convolution
_LARGEST = 2**31  # numbers that an image may hold


def weigh(flat: Tensor, fn: Tensor) -> Tensor:
    """``flat @ fnᵀ``: ``[T, P]`` from ``flat [T, K]``, contiguous, and ``fn [P, K]``."""
    if _convolves(flat):
        return torch.nn.functional.conv2d(_pixels(flat), fn[:, :, None, None])[0, :, :, 0].mT
    # Few columns are slower to form than few rows.
    if not blocks_help(flat, _PROJECTED):
        return (fn @ flat.mT).mT
    return torch.cat([(fn @ block.mT).mT for block in flat.split(_PROJECTED)])


def sum_of_products(dz: Tensor, flat: Tensor) -> Tensor:
    """``dzᵀ @ flat``: the gradient of fn, ``[P, K]``, from ``dz [T, P]`` and ``flat [T, K]``, contiguous."""
    T, P = dz.shape
    if _convolves(flat):
        size = (P, flat.shape[1], 1, 1)
        return grad.conv2d_weight(_pixels(flat), size, _pixels(dz.contiguous()))[:, :, 0, 0]
    if not blocks_help(flat, _SUMMED):
        return dz.mT @ flat
    whole = T - T % _SUMMED
    blocks = [tensor[:whole].unflatten(0, (-1, _SUMMED)) for tensor in (dz, flat)]
    total = torch.bmm(blocks[0].mT, blocks[1]).sum(0)
    return total if whole == T else total + dz[whole:].mT @ flat[whole:]


def _pixels(flat: Tensor) -> Tensor:
    """``[T, K]`` as the image ``[1, K, T, 1]`` with the channels innermost, which is the same memory."""
    return flat[None, :, None].movedim(-1, 1)


def _convolves(flat: Tensor) -> bool:
    return (
        not watched()
        and flat.device.type == "cpu"
        and flat.dtype == torch.float32
        and len(flat) >= _ENOUGH
        and flat.numel() < _LARGEST
        and torch.get_num_threads() > 1
        and torch.backends.mkldnn.is_available()
    )


def blocks_help(tensor: Tensor, tokens: int) -> bool:
    """Whether blocks of so many tokens are faster than the whole."""
    return not watched() and tensor.device.type == "cpu" and len(tensor) > tokens
