"""What a layer refuses, with the reason."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hyperconn.manifolds.core.errors import unknown_name
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
            f"{list(x.shape)}; make them with expand_streams(h, streams={spec.layout.n}{fractions}), or, "
            "where h is [B, C, H, W], with channel_dim=1 in the config and the `expand` of config.make_ends(dim)"
        )
    if x.device != anchor.device:
        raise ValueError(
            f"{spec.summary()} has its parameters on {anchor.device}, the streams are on {x.device}; "
            "move one of them with .to(device)"
        )


def check_branch(spec: LayerSpec, branch: object, output: object) -> None:
    """Raise unless ``branch`` and ``output`` can be those of a layer.

    A branch that begins with a convolution over channels that come first is refused where the config has them last.
    """
    if branch is not None and not callable(branch):
        raise TypeError(f"HyperConnection: branch must be a module or function, or None; got {branch!r}")
    if not isinstance(output, str) or output not in ("all", "first"):
        raise unknown_name("output of a HyperConnection", output, ("all", "first"))
    first: Any = branch
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    channels = first.in_channels if isinstance(first, _ConvNd) else getattr(first, "num_features", None)
    comes_first = isinstance(first, (_ConvNd, nn.BatchNorm2d, nn.BatchNorm3d))  # BatchNorm1d takes [B, C] as well
    if comes_first and channels == spec.dim and spec.config.channel_dim == -1:
        raise ValueError(
            f"{spec.summary()}: the branch begins with {first!r}, whose channels come first, and the config has "
            "channel_dim=-1; make the config with channel_dim=1, and the ends with config.make_ends"
        )


def channels_moved(spec: LayerSpec, u: Tensor) -> Tensor:
    """``u [..., C]`` with its channels where the branch has them."""
    where = spec.config.channel_dim
    if not -u.dim() <= where < u.dim():
        raise IndexError(f"{spec.summary()}: channel_dim={where} is no axis of the branch's input {list(u.shape)}")
    return u.movedim(-1, where)


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
