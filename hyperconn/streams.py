"""Into the streams and out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hyperconn.gates import GATES
from hyperconn.kernels import mean_square_projection, read_streams
from hyperconn.kernels.autocast import without_autocast
from hyperconn.manifolds.core.errors import unknown_name


def expand_streams(h: Tensor, streams: int, *, fractions: bool = False) -> Tensor:
    """Turn a hidden vector into residual streams.

    Args:
        h: ``[..., C]``.
        streams: number n of streams.
        fractions: cut h into n fractions instead of copying it.

    Returns:
        ``[..., n, C]``, n copies; or ``[..., n, C/n]``.

    Raises:
        ValueError: n < 1, or C is not a multiple of n and fractions were asked for.
    """
    if not isinstance(h, Tensor) or h.dim() < 1:
        raise ValueError(f"expand_streams: h is a tensor of shape [..., C], got {_describe(h)}")
    if isinstance(streams, bool) or not isinstance(streams, int):
        raise TypeError(f"expand_streams: streams must be an int, got {streams!r}")
    if streams < 1:
        raise ValueError(f"expand_streams: streams must be at least 1, got {streams}")
    if not fractions:
        return h.unsqueeze(-2).repeat(*[1] * (h.dim() - 1), streams, 1)
    if h.shape[-1] % streams:
        raise ValueError(f"expand_streams: {h.shape[-1]} channels cannot be cut into {streams} equal fractions")
    return h.unflatten(-1, (streams, h.shape[-1] // streams))


def collapse_streams(
    x: Tensor, how: Literal["mean", "sum", "concat"] | str | Callable[[Tensor], Tensor] = "mean"
) -> Tensor:
    """Turn residual streams into one hidden vector.

    Args:
        x: ``[..., n, C]``.
        how: ``"mean"`` or ``"sum"`` over the streams, ``"concat"`` for fractions, or a learned head (any callable).

    Returns:
        ``[..., C]``; ``[..., n·C]`` for ``"concat"``.

    Raises:
        UnknownNameError: another word.
    """
    if not isinstance(x, Tensor) or x.dim() < 2:
        raise ValueError(f"collapse_streams: x is a tensor of shape [..., n, C], got {_describe(x)}")
    if callable(how):
        return how(x)
    if how == "mean":
        return x.mean(-2)
    if how == "sum":
        return x.sum(-2)
    if how == "concat":
        return x.flatten(-2)
    if how == "head":
        raise ValueError(
            "collapse_streams: a learned head has parameters, so it is a module: make "
            "HyperConnectionHead(dim, streams) once and pass it in place of 'head'"
        )
    raise unknown_name("way to collapse streams", how, ("mean", "sum", "concat"))


def _describe(value: object) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class HyperConnectionHead(nn.Module):
    """Learned collapse: ``h = Σᵢ preᵢ xᵢ`` with ``pre = σ(s · (vec x · φ) / r + b) + eps``.

    Starts as the mean of the streams.

    Args:
        dim: channels C of a stream.
        streams: number n of streams.
        norm_eps: added to the mean square.
        pre_eps: added to the weights.

    Shapes: ``[..., n, C] -> [..., C]`` of the same dtype; weights in float32 or wider. Parameters ``hc_fn [n, nC]``,
    ``hc_base [n]``, ``hc_scale [1]``, the names of DeepSeek-V4.

    Source: DeepSeek-V4 in Hugging Face transformers.
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        *,
        norm_eps: float = 1e-6,
        pre_eps: float = 1e-6,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or streams < 1:
            raise ValueError(f"HyperConnectionHead: dim and streams must be at least 1, got {dim} and {streams}")
        self.dim, self.streams = dim, streams
        self.norm_eps, self.pre_eps = norm_eps, pre_eps
        self.hc_fn = nn.Parameter(torch.empty(streams, streams * dim, device=device))
        self.hc_base = nn.Parameter(torch.empty(streams, device=device))
        self.hc_scale = nn.Parameter(torch.empty(1, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights 1/n for every token."""
        self.hc_fn.zero_()
        self.hc_scale.fill_(0.01)
        share = torch.full((self.streams,), 1 / self.streams, dtype=torch.float64)
        self.hc_base.copy_(torch.logit(share.clamp(max=1 - 2.0**-23)))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"HyperConnectionHead takes floating point streams, got {x.dtype}")
        if x.shape[-2:] != (self.streams, self.dim):
            raise ValueError(
                f"HyperConnectionHead takes streams of shape [..., {self.streams}, {self.dim}], got {list(x.shape)}"
            )
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.hc_fn.dtype), torch.float32)
        with without_autocast(x.device):
            wide = x.to(dtype)
            z = mean_square_projection(wide, self.hc_fn.to(dtype), self.norm_eps)
            pre = GATES["sigmoid"](self.hc_scale.to(dtype) * z + self.hc_base.to(dtype), self.streams) + self.pre_eps
            return read_streams(wide, pre).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, streams={self.streams}"
