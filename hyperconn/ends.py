"""The two ends of a model, as modules: from its hidden vectors into the streams, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from hyperconn.streams import Collapse, DelayedStreams, Expand


class ExpandStreams(nn.Module):
    """What stands before the first layer of a model: ``[..., C] -> [..., n, stream_dim]``, or ``DelayedStreams``.

    Args:
        part: how a vector becomes streams.
        dim: channels C.
        streams: number n of streams.
        channel_dim: where the channels of the input are, ``-1`` for the last axis, ``1`` for ``[B, C, H, W]``.
        delayed: whether the layers read with weights that the layer before predicted.

    Raises:
        ValueError: an input whose ``channel_dim`` is not C long.
    """

    def __init__(self, part: Expand, dim: int, streams: int, *, channel_dim: int = -1, delayed: bool = False) -> None:
        super().__init__()
        self.part, self.dim, self.streams, self.channel_dim, self.delayed = part, dim, streams, channel_dim, delayed

    def forward(self, h: Tensor) -> Any:
        if not -h.dim() <= self.channel_dim < h.dim() or h.shape[self.channel_dim] != self.dim:
            raise ValueError(
                f"the ends are made for {self.dim} channels at channel_dim={self.channel_dim}, got the shape "
                f"{list(h.shape)}; for [B, C, H, W] the config needs channel_dim=1, for [..., C] -1"
            )
        x = self.part(h.movedim(self.channel_dim, -1), self.streams)
        return DelayedStreams.seed(x) if self.delayed else x

    def extra_repr(self) -> str:
        return f"{self.part.name}, dim={self.dim}, streams={self.streams}, channel_dim={self.channel_dim}"


class CollapseStreams(nn.Module):
    """What stands after the last layer of a model: ``[..., n, stream_dim] -> [..., C]``.

    Args:
        part: how streams become a vector.
        stream_dim: channels of a stream.
        streams: number n of streams.
        channel_dim: where the channels of the output are.
        **options: of a part with parameters.

    Attributes:
        collapse: the part, or the module that it makes.
    """

    def __init__(self, part: Collapse, stream_dim: int, streams: int, *, channel_dim: int = -1, **options: Any) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.collapse = part.make(stream_dim, streams, **options)

    def forward(self, x: Any) -> Tensor:
        return self.collapse(x).movedim(-1, self.channel_dim)

    def extra_repr(self) -> str:
        return f"{self.collapse!r}, channel_dim={self.channel_dim}"


class Ends(NamedTuple):
    """Both ends: ``expand, collapse = config.make_ends(dim)``."""

    expand: ExpandStreams
    collapse: CollapseStreams
