"""Layers in general position, for the tests of what a user expects of the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig

DIM = 8
PRESETS = HyperConnectionConfig.presets()

LEARNED = tuple(preset for preset in PRESETS if preset != "plain")  # those with parameters

every_preset = pytest.mark.parametrize("preset", PRESETS)
every_learned_preset = pytest.mark.parametrize("preset", LEARNED)


class Branch(nn.Module):
    """Channel mixing without autocast's matrix products, so that it computes the same everywhere."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.tanh(1.5 * u + u.roll(1, -1) ** 2)


def make_block(preset: str | None = None, *, branch: Any = None, n: int = 4, **overrides: Any) -> HyperConnection:
    """A layer in general position: random coefficients that depend on the token."""
    config = HyperConnectionConfig(n, **overrides) if preset is None else None
    config = config or HyperConnectionConfig.preset(str(preset), streams=n, **overrides)
    index = 0 if config.read == "delayed" else 1  # the first sublayer with delayed reads takes streams alone
    block = HyperConnection(Branch() if branch is None else branch, dim=DIM, config=config, layer_index=index)
    generator = torch.Generator().manual_seed(3)
    for name in ("fn", "base", "scale"):
        parameter = getattr(block, name, None)
        if parameter is not None:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + noise / (parameter.shape[1] ** 0.5 if name == "fn" else 1.0)
    return block


def streams_of(out: Any) -> Tensor:
    """The streams of what a layer returned, whatever comes with them where reads are delayed."""
    return out if isinstance(out, Tensor) else out[0]


def make_streams(block: HyperConnection, *batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*batch, block.config.streams, block.stream_dim, dtype=dtype)


def run(block: Any, x: Any) -> Tensor:
    """The streams that a layer, or anything around one, returns."""
    return streams_of(block(x))


def gradients(output: Tensor, block: HyperConnection, x: Tensor) -> list[Tensor]:
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    return list(torch.autograd.grad(output, (x, *block.parameters()), cotangent))
