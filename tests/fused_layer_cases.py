"""Layers on the Triton backend beside the same layers on torch in float64, and manifolds that the library never saw."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from fused_cases import DEVICE, EXACT_DTYPE, relative_error
from healthy_manifold import Circulant
from hyperconn import HyperConnection
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.manifolds import Manifold
from hyperconn.manifolds.registry import register, unregister
from layer_cases import make_block


def on(block: HyperConnection, backend: str) -> HyperConnection:
    """A copy of the layer on another backend."""
    other = copy.deepcopy(block)
    other.config = dataclasses.replace(block.config, backend=backend)
    return other


def twins(preset: str | None = None, **options: Any) -> tuple[HyperConnection, HyperConnection]:
    """The same layer on Triton and on torch, as exact as the device allows and in float64."""
    block = make_block(preset, backend="triton", **options).to(DEVICE, EXACT_DTYPE)
    return block, on(block, "torch").double()


def streams(block: HyperConnection, *batch: int, dtype: torch.dtype = EXACT_DTYPE) -> Tensor:
    return torch.randn(*batch, *block.stream_shape, dtype=torch.float64).to(DEVICE, dtype)


def leaves_of(block: nn.Module, x: Tensor) -> list[Tensor]:
    return [leaf for leaf in (x, *block.parameters()) if leaf.requires_grad]


def everything(out: Any) -> Tensor:
    """Streams, and beside them what a layer with delayed reads hands on."""
    return out if isinstance(out, Tensor) else torch.cat([out[0], out[1].unsqueeze(-1).to(out[0].dtype)], -1)


def compare(
    fused: nn.Module,
    reference: nn.Module,
    x: Tensor,
    tolerance: float,
    *,
    through: Callable[[nn.Module, Tensor], Any] = lambda block, x: block(x),
    cotangent: Callable[[Tensor], Tensor] = torch.randn_like,
    needs_x: bool = True,
) -> Tensor:
    """Same output, and same gradients of x and of every parameter, none of which vanishes; returns the output."""
    mine, theirs = x.detach().requires_grad_(needs_x), x.detach().double().requires_grad_(needs_x)
    out, expected = everything(through(fused, mine)), everything(through(reference, theirs))
    assert out.dtype == x.dtype and out.shape == expected.shape
    assert relative_error(out.detach(), expected.detach()) < tolerance
    d = cotangent(out.detach())
    gradients = torch.autograd.grad(out, leaves_of(fused, mine), d)
    wanted = torch.autograd.grad(expected, leaves_of(reference, theirs), d.double())
    for leaf, gradient, want in zip(leaves_of(fused, mine), gradients, wanted, strict=True):
        assert relative_error(gradient, want) < tolerance, list(leaf.shape)
    return out


# ------------------------------------------------------------------------------------------- manifolds of a plugin


@triton.jit
def diagonal_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    i = tl.arange(0, N)
    return tl.where(i[None, :, None] == i[None, None, :], OPTIONS[0] * theta[:, None, :], 0.0)


@triton.jit
def diagonal_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    i = tl.arange(0, N)
    return tl.sum(tl.where(i[None, :, None] == i[None, None, :], OPTIONS[0] * dH, 0.0), 1)


@dataclasses.dataclass(frozen=True)
class Diagonal(Manifold):
    """Diagonal matrices, with a device pair of their own."""

    factor: float = 1.5

    name = "test-diagonal"
    exact = True

    @property
    def num_coordinates(self) -> int:
        return self.n

    @property
    def invariants(self) -> tuple[()]:
        return ()

    @property
    def kernel(self) -> DevicePair:
        return DevicePair(diagonal_forward, diagonal_backward, (self.factor,))

    def forward(self, theta: Tensor) -> Tensor:
        return torch.diag_embed(self.factor * theta)

    def identity(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        return torch.full((self.n,), 1 / self.factor, dtype=dtype, device=device)


@dataclasses.dataclass(frozen=True)
class Cycles(Circulant):
    """Without a device pair."""

    name = "test-cycles"


@contextmanager
def plugins() -> Iterator[None]:
    """Both are registered in this context."""
    for manifold in (Diagonal, Cycles):
        register(manifold.name)(manifold)
    try:
        yield
    finally:
        for manifold in (Diagonal, Cycles):
            unregister(manifold.name)
