"""A manifold of your own: every stream moves towards the mean of all streams, by a learned amount."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig, expand_streams
from hyperconn.manifolds import Invariant, Manifold, invariants
from hyperconn.testing import verify


@dataclass(frozen=True)
class Averaging(Manifold):
    """H = (1 - a) I + a J, with J = 11ᵀ/n and a = sigmoid(theta): doubly stochastic with one coordinate."""

    name = "averaging"
    exact = True

    @property
    def num_coordinates(self) -> int:
        return 1

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.nonnegative, invariants.row_sums, invariants.column_sums)

    def forward(self, theta: Tensor) -> Tensor:  # [..., 1] -> [..., n, n]
        a = torch.sigmoid(theta)[..., None]
        eye = torch.eye(self.n, dtype=theta.dtype, device=theta.device)
        return eye + a * (torch.full_like(eye, 1 / self.n) - eye)

    def identity_coordinates(self) -> list[float]:
        return [-64.0]

    def initial_coordinates(self, sharpness: float) -> list[float]:
        return [-sharpness]


torch.manual_seed(0)
manifold = Averaging(n=4)
verdicts = verify(manifold, examples=5)
assert len(verdicts) > 10
print(f"laws broken = {sum(not verdict.holds for verdict in verdicts)}")

config = HyperConnectionConfig(streams=4, manifold=manifold, fn_std=1.0, scale_init=1.0)  # the object needs no name
layer = HyperConnection(torch.nn.Linear(16, 16), dim=16, config=config)
x = layer(expand_streams(torch.randn(8, 16), streams=4))
print(f"violation in a layer = {manifold.violation(layer.coefficients(x).H).max():.1e}")
