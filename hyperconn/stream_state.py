"""Streams inside a layer, and on their way from one layer into the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar, overload

import torch
from torch import Tensor, nn

from hyperconn.kernels.steps import Projected
from hyperconn.spec import LayerSpec


def recomputing() -> bool:
    """Whether a backward pass is running: it may repeat a step that a checkpoint wants to see again."""
    return torch._C._current_graph_task_id() != -1


@dataclass(frozen=True)
class Entered:
    """Streams that a layer has taken in: flat, in the dtype it works in, projected on its prediction weights."""

    projected: Projected
    batch: torch.Size
    dtype: torch.dtype  # of the streams outside
    backend: str
    carried: Tensor | None = None  # [T, n]: the read weights of the sublayer before, where reads are delayed

    def batched(self, flat: Tensor) -> Tensor:
        """``[T, ...]`` to ``[*batch, ...]``."""
        return flat.reshape(*self.batch, *flat.shape[1:])


@dataclass(frozen=True)
class Handover:
    """Streams that one layer wrote for one other: they carry the products with that layer's prediction weights.

    Made by ``write(y, into=layer)``. Saves a pass over the streams wherever two layers follow each other.

    Attributes:
        layer: the only layer that can read this.
        streams: ``[..., n, C]``, the streams as a plain tensor, for any other use.
    """

    layer: nn.Module
    spec: LayerSpec
    entered: Entered
    _readers: list[str] = field(default_factory=list, repr=False, compare=False)
    _recorded: bool = field(default_factory=torch.is_grad_enabled, repr=False, compare=False)

    def take(self) -> None:
        """Note that ``layer`` reads this, which it may do once."""
        if self._readers and not recomputing():
            raise RuntimeError(
                f"{self.spec.summary()}: the streams handed over were read twice; the gradients of the two reads "
                "would be mixed up: read `handover.streams` again instead"
            )
        if torch.is_grad_enabled() and not self._recorded:
            raise RuntimeError(
                f"{self.spec.summary()}: the streams handed over were written without autograd and are read with it: "
                "no gradient would reach what wrote them; under torch.utils.checkpoint pass use_reentrant=False, or "
                "read `handover.streams` if none is meant to"
            )
        self._readers.append(self.spec.summary())

    @property
    def streams(self) -> Tensor:
        return self.entered.batched(self.entered.projected.x).to(self.entered.dtype)


Written = TypeVar("Written", covariant=True)


class Write(Protocol[Written]):
    """What ``HyperConnection.read`` returns beside the branch's input: writes the branch's output, once."""

    @overload
    def __call__(self, y: Tensor, into: None = None) -> Written: ...
    @overload
    def __call__(self, y: Tensor, into: nn.Module) -> Handover: ...
