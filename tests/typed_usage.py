"""The public surface as a static checker sees it; `make types` reads this file, nothing runs it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from typing_extensions import assert_type

from hyperconn import (
    DelayedStreams,
    Handover,
    HyperConnection,
    HyperConnectionConfig,
    HyperConnectionStack,
    collapse_streams,
    expand_streams,
    manifolds,
)
from hyperconn.gates import Gate
from hyperconn.manifolds import Invariant, Manifold, invariants


def two_phases(layer: HyperConnection, following: HyperConnection, h: Tensor) -> None:
    x = assert_type(expand_streams(h, streams=4), Tensor)
    u, write = layer.read(x)
    assert_type(u, Tensor)
    assert_type(write(u), Tensor)
    handed = write(u, into=following)
    assert_type(handed, Handover)
    assert_type(handed.streams, Tensor)
    v, last = following.read(handed)
    assert_type(v, Tensor)
    last(v)
    write("not a tensor")  # type: ignore[call-overload]
    write(u, into="not a layer")  # type: ignore[call-overload]
    layer.read("not a tensor")  # type: ignore[call-overload]
    assert_type(layer.read(DelayedStreams.seed(x))[1](u), DelayedStreams)
    assert_type(layer.coefficients(x).H, Tensor)
    assert_type(layer.fn, nn.Parameter)
    assert_type(layer.manifold, Manifold)


def stacks(stack: HyperConnectionStack, x: Tensor) -> None:
    assert_type(stack(x), Tensor)
    assert_type(stack(x, mask=x), Tensor)
    assert_type(stack(DelayedStreams.seed(x)), DelayedStreams)
    assert_type(stack[0], HyperConnection)
    assert_type(stack[1:], HyperConnectionStack)
    assert_type([layer.dim for layer in stack], list[int])
    assert_type(collapse_streams(stack(x), "mean"), Tensor)
    stack("not a tensor")  # type: ignore[call-overload]


@dataclass(frozen=True)
class Halves(Manifold):
    """What the guide writes as class attributes may be that, or properties."""

    name = "halves"
    exact = True
    norm_bound = 1.0
    num_coordinates = 0

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.row_sums,)

    @property
    def contains_identity(self) -> bool:
        return self.n == 1

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.new_full((*numbers.shape[:-1], self.n, self.n), 1 / self.n)


@dataclass(frozen=True)
class Wide(Gate):
    """A gate whose weights have a shape of their own."""

    name = "wide"
    value_shape = (2, 3)

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def parts(given: Manifold) -> None:
    fine: bool = Halves(n=2).exact
    assert fine
    assert_type(Halves(n=2)(Tensor()), Tensor)
    assert_type(manifolds.make("kronecker", n=4), Manifold)
    assert_type(manifolds.Kronecker(n=4, factors=(2, 2)), manifolds.Kronecker)
    assert_type(given.tolerance(Tensor().dtype), float)
    assert_type(HyperConnectionConfig.preset("kromhc"), HyperConnectionConfig)
    HyperConnectionConfig(streams="four")  # type: ignore[arg-type]
