"""The two ends of a model, as modules: from its hidden vectors into the streams, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperconn.streams import Collapse, Expand


class ExpandStreams(nn.Module):
    """What stands before the first layer of a model: ``[..., C] -> [..., n, stream_dim]``.

    Args:
        part: how a vector becomes streams.
        dim: channels C.
        streams: number n of streams.
        channel_dim: where the channels of the input are, ``-1`` for the last axis, ``1`` for ``[B, C, H, W]``.

    Raises:
        ValueError: an input whose ``channel_dim`` is not C long.
    """

    def __init__(self, part: Expand, dim: int, streams: int, *, channel_dim: int = -1) -> None:
        super().__init__()
        require_channel_dim("ExpandStreams", channel_dim)
        self.part, self.dim, self.streams, self.channel_dim = part, dim, streams, channel_dim

    def forward(self, h: Tensor) -> Tensor:
        if not -h.dim() <= self.channel_dim < h.dim() or h.shape[self.channel_dim] != self.dim:
            raise ValueError(
                f"the ends are made for {self.dim} channels at channel_dim={self.channel_dim}, got the shape "
                f"{list(h.shape)}; for [B, C, H, W] pass channel_dim=1 to make_ends and to every HyperConnection, for "
                "[..., C] leave it out of both"
            )
        return self.part(h.movedim(self.channel_dim, -1), self.streams)

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
        require_channel_dim("CollapseStreams", channel_dim)
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

    @classmethod
    def of(
        cls,
        expand: Expand,
        collapse: Collapse,
        dim: int,
        streams: int,
        channel_dim: int,
        norm_eps: float,
        device: torch.device | str | None,
    ) -> Ends:
        """The ends of two parts, for hidden vectors of ``dim`` channels."""
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"make_ends: dim must be a positive int, the channels of the model; got {dim!r}")
        back = CollapseStreams(
            collapse,
            expand.stream_dim(dim, streams),
            streams,
            channel_dim=channel_dim,
            norm_eps=norm_eps,
            device=device,
        )
        return cls(ExpandStreams(expand, dim, streams, channel_dim=channel_dim), back)


def require_channel_dim(what: str, channel_dim: object) -> None:
    """Refuse what is no axis."""
    if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
        raise TypeError(f"{what}: channel_dim is the axis of the channels, an int; got {channel_dim!r}")
