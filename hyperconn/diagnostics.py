"""What the residual matrices of a stack do together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperconn.coefficients import Coefficients
from hyperconn.connection import HyperConnection
from hyperconn.manifolds.core.invariants import spectral_norm_of


class LayerCoefficients(NamedTuple):
    """Coefficients of one hyper-connection of a model."""

    name: str
    layer: HyperConnection
    coefficients: Coefficients


@torch.no_grad()
def collect_coefficients(model: nn.Module, *inputs: Any, **kwargs: Any) -> list[LayerCoefficients]:
    """Run ``model(*inputs, **kwargs)`` and return the coefficients of its hyper-connections in the order they ran.

    Raises:
        ValueError: no hyper-connection of the model was read.
    """
    found: list[LayerCoefficients] = []
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, HyperConnection)]

    def record(name: str, layer: HyperConnection, coefficients: Coefficients) -> None:
        found.append(LayerCoefficients(name, layer, coefficients))

    with ExitStack() as afterwards:
        for name, layer in layers:
            observer = partial(record, name, layer)
            layer.observers.append(observer)
            afterwards.callback(layer.observers.remove, observer)
        model(*inputs, **kwargs)
    if not found:
        raise ValueError(
            f"{type(model).__name__} read none of its {len(layers)} hyper-connections; "
            "pass a model whose forward pass runs them"
        )
    return found


def composite(Hs: Sequence[Tensor] | Tensor) -> Tensor:
    """Products over depth, in float64.

    Args:
        Hs: L matrices ``[..., n, n]``, the first applied first.

    Returns:
        ``[L, ..., n, n]``: entry l is ``H_l … H_1 H_0``, what the first l + 1 layers do to the streams.
    """
    products: list[Tensor] = []
    for H in Hs:
        products.append(H.double() if not products else H.double() @ products[-1])
    return torch.stack(products)


def forward_gain(H: Tensor) -> Tensor:
    """Largest absolute row sum of ``H [..., n, n]``: how much it can amplify a signal, ``[...]`` (amax gain of mHC)."""
    return H.abs().sum(-1).amax(-1)


def backward_gain(H: Tensor) -> Tensor:
    """Largest absolute column sum of ``H [..., n, n]``: how much it can amplify a gradient, ``[...]``."""
    return H.abs().sum(-2).amax(-1)


def spectral_norm(H: Tensor) -> Tensor:
    """Largest singular value of ``H [..., n, n]``: ``[...]``, float64."""
    return spectral_norm_of(H.double())
