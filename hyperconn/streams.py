"""Into the streams and out of them: functions, and the parts that a config names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hyperconn.gates import Sigmoid
from hyperconn.kernels.autocast import without_autocast
from hyperconn.kernels.passes.normalisation import inverse_rms
from hyperconn.manifolds.core.errors import unknown_name
from hyperconn.manifolds.core.map import ClassName
from hyperconn.predictors import slowed

_HEAD_SCALE = 0.01  # where the factor of a learned head's prediction starts


@dataclass(frozen=True)
class Expand(ABC):
    """How a hidden vector becomes n streams.

    Attributes:
        name: what a config says.
        whole: every stream has all channels, and is written all of the branch's output.
    """

    name: ClassVar[str] = cast(str, ClassName())
    whole: ClassVar[bool] = True

    @abstractmethod
    def stream_dim(self, dim: int, n: int) -> int:
        """Channels of a stream for a hidden vector of ``dim``; raises ValueError where they cannot be shared out."""

    @abstractmethod
    def __call__(self, h: Tensor, n: int) -> Tensor:
        """``[..., C] -> [..., n, stream_dim]``."""


@dataclass(frozen=True)
class Copies(Expand):
    """n copies: ``[..., C] -> [..., n, C]``."""

    name = "copies"

    def stream_dim(self, dim: int, n: int) -> int:
        return dim

    def __call__(self, h: Tensor, n: int) -> Tensor:
        return h.unsqueeze(-2).repeat(*[1] * (h.dim() - 1), n, 1)


@dataclass(frozen=True)
class Fractions(Expand):
    """n fractions of the vector: ``[..., C] -> [..., n, C/n]`` (Frac-Connections, arXiv 2503.14125)."""

    name = "fractions"
    whole = False

    def stream_dim(self, dim: int, n: int) -> int:
        if dim % n:
            raise ValueError(f"{dim} channels cannot be cut into {n} equal fractions")
        return dim // n

    def __call__(self, h: Tensor, n: int) -> Tensor:
        return h.unflatten(-1, (n, self.stream_dim(h.shape[-1], n)))


EXPANDS: dict[str, Expand] = {part.name: part for part in (Copies(), Fractions())}


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
    return EXPANDS["fractions" if fractions else "copies"](h, streams)


class DelayedStreams(NamedTuple):
    """What passes between sublayers that read with the weights of the sublayer before (``read="delayed"``).

    Attributes:
        streams: ``[..., n, C]``.
        pre: ``[..., n]``, float32 or wider: the weights that the next sublayer reads with; the last ones collapse the
            streams.

    Source: DeepSeek-V4.1.
    """

    streams: Tensor
    pre: Tensor

    @classmethod
    def seed(cls, x: Tensor) -> DelayedStreams:
        """What the first sublayer takes: streams ``x [..., n, C]``, read from stream 0 alone."""
        first = torch.arange(x.shape[-2], device=x.device) == 0
        pre = first.to(torch.promote_types(x.dtype, torch.float32)).expand(x.shape[:-1])
        return cls(x, pre.contiguous())


@dataclass(frozen=True)
class Collapse(ABC):
    """How n streams become one hidden vector.

    Attributes:
        name: what a config says.
        of: the name of the expansion that it undoes; ``"copies"`` stands for every one into whole streams.
        needs: what comes out of the last sublayer: ``"streams"``, or ``"pre"`` for its read weights as well.
    """

    name: ClassVar[str] = cast(str, ClassName())
    of: ClassVar[str] = "copies"
    needs: ClassVar[Literal["streams", "pre"]] = "streams"

    @abstractmethod
    def __call__(self, x: Any) -> Tensor:
        """``[..., n, C] -> [..., C]`` (``[..., n·C]`` for fractions)."""

    def make(self, dim: int, n: int, **options: Any) -> Callable[[Any], Tensor]:
        """What a model calls after its last layer: this object, or a module where there is something to learn.

        Args:
            dim: channels C of a stream.
            n: number of streams.
            **options: of the module.
        """
        return self


@dataclass(frozen=True)
class Mean(Collapse):
    """The mean of the streams."""

    name = "mean"

    def __call__(self, x: Any) -> Tensor:
        return _streams_of(x).mean(-2)


@dataclass(frozen=True)
class Sum(Collapse):
    """The sum of the streams."""

    name = "sum"

    def __call__(self, x: Any) -> Tensor:
        return _streams_of(x).sum(-2)


@dataclass(frozen=True)
class Concat(Collapse):
    """The fractions, side by side."""

    name = "concat"
    of = "fractions"

    def __call__(self, x: Any) -> Tensor:
        return _streams_of(x).flatten(-2)


@dataclass(frozen=True)
class Pre(Collapse):
    """The streams, weighted with what the last of the sublayers with delayed reads left for the next one."""

    name = "pre"
    needs = "pre"

    def __call__(self, x: Any) -> Tensor:
        if isinstance(x, Tensor) or not hasattr(x, "pre"):
            raise TypeError(
                f"collapse_streams: 'pre' takes the streams and weights that a layer with read='delayed' returns, got "
                f"{_describe(x)}; use 'mean' for streams alone"
            )
        streams, pre = x
        wide = torch.promote_types(streams.dtype, pre.dtype)
        with without_autocast(streams.device):
            return (pre.to(wide).unsqueeze(-2) @ streams.to(wide)).squeeze(-2).to(streams.dtype)


@dataclass(frozen=True)
class Head(Collapse):
    """A learned head, ``HyperConnectionHead``."""

    name = "head"

    def __call__(self, x: Any) -> Tensor:
        raise ValueError(
            "collapse_streams: a learned head has parameters, so it is a module: make "
            "HyperConnectionHead(dim, streams) once and pass it in place of 'head'"
        )

    def make(self, dim: int, n: int, **options: Any) -> Callable[[Any], Tensor]:
        return HyperConnectionHead(dim, n, **options)


COLLAPSES: dict[str, Collapse] = {part.name: part for part in (Mean(), Sum(), Head(), Concat(), Pre())}


def collapse_streams(x: Any, how: str | Callable[[Any], Tensor] = "mean") -> Tensor:
    """Turn residual streams into one hidden vector.

    Args:
        x: ``[..., n, C]``, or the ``DelayedStreams`` that a layer with ``read="delayed"`` returns.
        how: ``"mean"`` or ``"sum"`` over the streams, ``"concat"`` for fractions, ``"pre"`` for delayed reads, or a
            learned head (any callable).

    Returns:
        ``[..., C]``; ``[..., n·C]`` for ``"concat"``.

    Raises:
        UnknownNameError: another word.
    """
    if _streams_of(x).dim() < 2:
        raise ValueError(f"collapse_streams: x is a tensor of shape [..., n, C], got {_describe(x)}")
    if callable(how):
        return how(x)
    if not isinstance(how, str) or how not in COLLAPSES:
        raise unknown_name("way to collapse streams", how, COLLAPSES)
    return COLLAPSES[how](x)


def _streams_of(x: Any) -> Tensor:
    streams = x if isinstance(x, Tensor) else getattr(x, "streams", None)
    if not isinstance(streams, Tensor):
        raise ValueError(f"collapse_streams: x is a tensor of shape [..., n, C], got {_describe(x)}")
    return streams


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
        self.gate = Sigmoid(streams)
        self.hc_fn = nn.Parameter(torch.empty(streams, streams * dim, device=device))
        self.hc_base = nn.Parameter(torch.empty(streams, device=device))
        self.hc_scale = nn.Parameter(torch.empty(1, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights 1/n for every token."""
        self.hc_fn.zero_()
        self.hc_scale.fill_(_HEAD_SCALE)
        with torch.device("cpu"):  # while the model may be built on a device without numbers
            start = self.gate.write_start(1 / self.streams)
        self.hc_base.copy_(start)

    def learning_rates(self) -> dict[str, float]:
        """Factors of the learning rates of the parameters, by name; see ``hyperconn.parameter_groups``."""
        return {f"hc_{name}": rate for name, rate in slowed(self.streams * self.dim, _HEAD_SCALE).items()}

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
            flat = wide.flatten(-2)
            square_sum = torch.linalg.vecdot(flat, flat).unsqueeze(-1)
            z = nn.functional.linear(flat, self.hc_fn.to(dtype))
            z = z * inverse_rms(square_sum, flat.shape[-1], self.norm_eps)
            pre = self.gate(self.hc_scale.to(dtype) * z + self.hc_base.to(dtype)) + self.pre_eps
            return self.gate.read(wide, pre).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, streams={self.streams}"
