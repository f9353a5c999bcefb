"""What a layer refuses, with the reason."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.spec import LayerSpec


def check_streams(spec: LayerSpec, x: Tensor, anchor: Tensor) -> None:
    """Raise unless ``x`` is what the layer takes: ``[..., n, C]``, float, dense, on the device of ``anchor``."""
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{spec.summary()} takes a floating point tensor of streams, got {kind}")
    if x.layout != torch.strided:
        raise TypeError(f"{spec.summary()} takes a dense tensor of streams, got {x.layout}; use x.to_dense()")
    if x.dim() < 2 or x.shape[-2:] != spec.stream_shape:
        fractions = ", fractions=True" if spec.config.fractions else ""
        raise ValueError(
            f"{spec.summary()} takes streams of shape [..., {spec.layout.n}, {spec.layout.channels}], got "
            f"{list(x.shape)}; make them with expand_streams(h, streams={spec.layout.n}{fractions}); "
            "of channels-first vectors, [B, C, H, W], with config.make_ends(dim, channel_dim=1)"
        )
    if x.device != anchor.device:
        raise ValueError(
            f"{spec.summary()} has its parameters on {anchor.device}, the streams are on {x.device}; "
            "move one of them with .to(device)"
        )


def check_carried(spec: LayerSpec, pre: Tensor, streams: Tensor) -> None:
    """Raise unless ``pre`` can be the read weights that the sublayer before left for these streams."""
    if not (isinstance(pre, Tensor) and pre.is_floating_point()) or pre.shape != streams.shape[:-1]:
        got = list(pre.shape) if isinstance(pre, Tensor) else type(pre).__name__
        raise ValueError(
            f"{spec.summary()} reads with weights of shape {list(streams.shape[:-1])}, one a stream, which the "
            f"sublayer before returns beside the streams; got {got}"
        )


def check_output(spec: LayerSpec, y: Tensor, u: Tensor) -> None:
    """Raise unless ``y``, which the branch returned, can be written where ``u`` was read."""
    if not (isinstance(y, Tensor) and y.is_floating_point()):
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{spec.summary()}: the branch has to return a floating point tensor, got {kind}")
    if y.shape != u.shape:
        raise ValueError(
            f"{spec.summary()} writes what has the shape of its branch's input, {list(u.shape)}; "
            f"the branch returned {list(y.shape)}"
        )
    if y.device != u.device:
        raise ValueError(
            f"{spec.summary()}: the branch was given a tensor on {u.device} and returned one on {y.device}"
        )
