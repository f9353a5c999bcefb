"""Consecutive hyper-connections as one module."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from hyperconn.connection import HyperConnection
from hyperconn.stream_state import Handover
from hyperconn.streams import DelayedStreams


class HyperConnectionStack(nn.ModuleList):
    """Hyper-connections that follow each other directly, with one pass over the streams fewer in between.

    Computes the same as running the layers one by one: every layer but the last writes and, in the same pass, forms the
    products that the next one predicts its coefficients from. Parameters are named as in a ``ModuleList``.

    Args:
        layers: HyperConnection modules with branches, of the same number of streams and channels.

    Shapes: ``x [..., n, C] -> [..., n, C]``; with delayed reads ``DelayedStreams -> DelayedStreams``. Extra arguments
    reach every branch.

    Warns:
        UserWarning: several layers, all of one ``layer_index``, as when it was forgotten.

    Raises:
        TypeError: something else than HyperConnection modules, or a branch that returns more than its output.
        ValueError: layers whose streams differ.

    >>> import torch
    >>> from hyperconn import HyperConnectionConfig
    >>> config = HyperConnectionConfig(streams=4, manifold="stiefel")
    >>> layers = [HyperConnection(nn.Linear(8, 8), dim=8, config=config, layer_index=i) for i in range(3)]
    >>> HyperConnectionStack(layers)(torch.randn(2, 4, 8)).shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, layers: Iterable[HyperConnection]) -> None:
        checked = _checked(layers)
        super().__init__(checked)
        if len(checked) > 1 and checked[0].config.streams > 1 and not any(layer.layer_index for layer in checked):
            warnings.warn(
                f"HyperConnectionStack: all {len(checked)} layers have layer_index=0, so that every read starts from "
                "the same stream; pass layer_index=i to layer i",
                stacklevel=2,
            )

    def forward(self, x: Tensor | DelayedStreams, *args: Any, **kwargs: Any) -> Tensor | DelayedStreams:
        """Run the layers in order: ``[..., n, C] -> [..., n, C]``; without any, x itself."""
        layers = _checked(self)  # again, because a ModuleList can be appended to
        handed: Tensor | DelayedStreams | Handover = x
        for layer, following in zip(layers, [*layers, None][1:], strict=True):
            handed = layer(handed, *args, into=following, **kwargs)
            if isinstance(handed, tuple) and not isinstance(handed, DelayedStreams):
                raise TypeError(
                    f"a branch of {type(self).__name__} returned {len(handed)} values; a stack passes on the streams "
                    "alone: make the layer with output='first', or run the layers one by one, with `x, *rest = "
                    "layer(x, into=next_layer)`"
                )
        assert not isinstance(handed, Handover)
        return handed

    if TYPE_CHECKING:  # torch says that modules hold modules and return anything

        @overload
        def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
        @overload
        def __call__(self, x: DelayedStreams, *args: Any, **kwargs: Any) -> DelayedStreams: ...
        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any: ...
        def __iter__(self) -> Iterator[HyperConnection]: ...
        @overload
        def __getitem__(self, idx: slice) -> HyperConnectionStack: ...
        @overload
        def __getitem__(self, idx: int) -> HyperConnection: ...
        def __getitem__(self, idx: int | slice) -> HyperConnection | HyperConnectionStack: ...


def _checked(modules: Iterable[nn.Module]) -> list[HyperConnection]:
    layers: list[HyperConnection] = []
    for index, layer in enumerate(modules):
        if not isinstance(layer, HyperConnection):
            raise TypeError(f"HyperConnectionStack holds HyperConnection modules, got {layer!r} at {index}")
        layers.append(layer)
        if layer.stream_shape != layers[0].stream_shape:
            raise ValueError(
                f"HyperConnectionStack: layer {index} takes streams {list(layer.stream_shape)}, layer 0 takes "
                f"{list(layers[0].stream_shape)}; they have to be the same"
            )
    return layers
