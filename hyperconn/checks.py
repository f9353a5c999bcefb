"""What a layer refuses, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hyperconn.connection import HyperConnection


def check_streams(layer: HyperConnection, x: Tensor) -> None:
    """Raise unless ``x`` is what the layer takes: ``[..., n, C]``, floating point, dense, where the parameters are."""
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{layer.summary()} takes a floating point tensor of streams, got {kind}")
    if x.layout != torch.strided:
        raise TypeError(f"{layer.summary()} takes a dense tensor of streams, got {x.layout}; use x.to_dense()")
    if x.dim() < 2 or x.shape[-2:] != layer.stream_shape:
        fractions = ", fractions=True" if layer.config.fractions else ""
        raise ValueError(
            f"{layer.summary()} takes streams of shape [..., {layer.config.streams}, {layer.stream_dim}], got "
            f"{list(x.shape)}; make them with expand_streams(h, streams={layer.config.streams}{fractions})"
        )
    if x.device != layer.base.device:
        raise ValueError(
            f"{layer.summary()} has its parameters on {layer.base.device}, the streams are on {x.device}; "
            "move one of them with .to(device)"
        )


def check_output(layer: HyperConnection, y: Tensor, u: Tensor) -> None:
    """Raise unless ``y``, which the branch returned, can be written where ``u`` was read."""
    if not (isinstance(y, Tensor) and y.is_floating_point()):
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{layer.summary()}: the branch has to return a floating point tensor, got {kind}")
    if y.shape != u.shape:
        raise ValueError(
            f"{layer.summary()} writes what has the shape of its branch's input, {list(u.shape)}; "
            f"the branch returned {list(y.shape)}"
        )
    if y.device != u.device:
        raise ValueError(
            f"{layer.summary()}: the branch was given a tensor on {u.device} and returned one on {y.device}"
        )
