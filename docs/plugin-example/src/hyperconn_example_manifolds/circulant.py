"""Doubly stochastic matrices as mixtures of cyclic shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold, invariants

circulant = Invariant(
    "circulant",
    "H[i + 1, j + 1] = H[i, j], indices mod n",
    lambda H: (H - H.roll((1, 1), dims=(-2, -1))).abs().amax((-2, -1)),
    closed_under_products=True,
    closed_under_mixtures=True,
    normal=lambda H, W: W - W.roll((1, 1), dims=(-2, -1)),
)


@dataclass(frozen=True)
class Circulant(Manifold):
    """Mixtures of the n cyclic shifts of the streams.

    **Set**: ``H ≥ 0, H 1 = 1, H[i+1, j+1] = H[i, j]`` (indices mod n). Doubly stochastic, and closed under
    products and mixtures.

    **Map**: ``H = Σₖ softmax(θ)ₖ Πᵏ`` with the shift ``Π[i, i+1] = 1``, so that
    ``H[i, j] = softmax(θ)[(j − i) mod n]``. It reaches the interior of the set, and the rest, the
    identity included, in the limit.

    **Exactness**: exact to rounding for any finite coordinates. n coordinates, n² entries copied.

    Source: C-mHC.

    >>> import torch
    >>> Circulant(n=2)(torch.zeros(2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    name = "circulant"
    api_version = 1
    exact = True
    source = "C-mHC"

    @property
    def num_coordinates(self) -> int:
        return self.n

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.row_sums, invariants.column_sums, invariants.nonnegative, circulant)

    @property
    def norm_bound(self) -> float:
        return 1.0

    def device_pair(self) -> Any | None:
        from hyperconn_example_manifolds.circulant_kernel import CIRCULANT

        return CIRCULANT

    def forward(self, theta: Tensor) -> Tensor:
        i = torch.arange(self.n, device=theta.device)
        return theta.softmax(-1)[..., (i - i[:, None]) % self.n]

    def reference(self, theta: Tensor) -> Tensor:
        """The mixture, one power of the shift after the other."""
        weights = theta.exp() / theta.exp().sum(-1, keepdim=True)
        shift = torch.eye(self.n, dtype=theta.dtype, device=theta.device).roll(1, 1)
        powers = torch.stack([torch.linalg.matrix_power(shift, k) for k in range(self.n)])
        return (weights[..., None, None] * powers).sum(-3)

    def initial_coordinates(self, sharpness: float) -> list[float]:
        return [0.0] + [-sharpness] * (self.n - 1)

    def coordinates(self, H: Tensor) -> Tensor:
        """Logarithms of the first row, which holds every coefficient once."""
        H = self._require_member(H, *self.invariants)
        return H[..., 0, :].clamp(min=torch.finfo(H.dtype).tiny).log()
