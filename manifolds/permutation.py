"""Doubly stochastic matrices as mixtures of permutations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core.constants import constant
from hyperconn.manifolds.core.invariants import DOUBLY_STOCHASTIC
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.symmetries import Symmetry, relabelled, relabelling, transposed
from hyperconn.manifolds.registry import register

MAX_N = 6


def permutation_matrices(n: int) -> Tensor:
    """``[n!, n·n]`` float64: the matrices with ``P[i, π(i)] = 1`` in the order of ``itertools.permutations``."""
    order = torch.tensor(list(itertools.permutations(range(n))))
    return torch.nn.functional.one_hot(order, n).flatten(1).double()


@register("permutation", "bvn", "mhc-lite")
@dataclass(frozen=True)
class Permutation(Manifold):
    """Doubly stochastic matrices as convex combinations of all n! permutation matrices.

    **Set**: ``H ≥ 0, H 1 = 1, Hᵀ 1 = 1``; by Birkhoff and von Neumann this map reaches all of
    its interior, and the rest in the limit.

    **Map**: ``H = Σₖ softmax(θ)ₖ Pₖ`` with the permutations in the order of
    ``itertools.permutations(range(n))``, the identity first.

    **Exactness**: exact to rounding for any finite coordinates. Costs n! coordinates: 24 at n = 4, 720 at n = 6.

    Raises:
        ValueError: n > 6.

    Source: mHC-lite, arXiv 2601.05732.

    >>> import torch
    >>> Permutation(n=2)(torch.zeros(2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    name = "permutation"
    source = "arXiv 2601.05732"
    exact = True
    invariants = DOUBLY_STOCHASTIC
    norm_bound = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n > MAX_N:
            raise ValueError(
                f"Permutation: n={self.n} would need {self.n}! coordinates per token; the largest n is {MAX_N}. Use "
                "manifold 'kronecker', whose coordinates grow with the factors of n (if its primes are small), or "
                "'birkhoff' with finish='round'"
            )

    @property
    def num_coordinates(self) -> int:
        return math.factorial(self.n)

    def forward(self, theta: Tensor) -> Tensor:
        weights = torch.softmax(theta, -1)
        return (weights @ constant(permutation_matrices, self.n, theta)).unflatten(-1, (self.n, self.n))

    def reference(self, theta: Tensor) -> Tensor:
        """The mixture, one permutation after the other."""
        weights = theta.exp() / theta.exp().sum(-1, keepdim=True)
        H = theta.new_zeros(*theta.shape[:-1], self.n, self.n)
        for k, order in enumerate(itertools.permutations(range(self.n))):
            for i, j in enumerate(order):
                H[..., i, j] += weights[..., k]
        return H

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        orders = list(itertools.permutations(range(self.n)))
        number = {order: k for k, order in enumerate(orders)}

        def inverse(order: Sequence[int]) -> tuple[int, ...]:
            return tuple(sorted(range(self.n), key=order.__getitem__))

        def relabel(theta: Tensor, draw: Tensor) -> Tensor:
            # (P H Pᵀ)[i, j] = H[s(i), s(j)]: the weight of s⁻¹ p s is that of p.
            s = relabelling(draw).tolist()
            back = inverse(s)
            return theta[..., [number[tuple(s[p[back[i]]] for i in range(self.n))] for p in orders]]

        def transpose(theta: Tensor, draw: Tensor) -> Tensor:
            return theta[..., [number[inverse(p)] for p in orders]]

        return (
            Symmetry("relabelling", "conjugated permutations: P m(θ) Pᵀ", relabel, relabelled),
            Symmetry("transposition", "inverse permutations: m(θ)ᵀ", transpose, transposed),
            Symmetry("shift", "m(θ + c) = m(θ)", lambda theta, draw: theta + draw[0, 0]),
        )

    def device_pair(self) -> Any:
        from hyperconn.kernels.fused.maps.kronecker import kronecker_pair

        return kronecker_pair([self.n])

    def initial_coordinates(self, sharpness: float) -> list[float]:
        return [0.0] + [-sharpness] * (self.num_coordinates - 1)

    def coordinates(self, H: Tensor) -> Tensor:
        """Birkhoff–von Neumann decomposition by the permutation with the largest bottleneck, then logarithms."""
        H = self._require_member(H, *self.invariants)
        P = constant(permutation_matrices, self.n, H)  # [n!, n²]
        rest = H.detach().flatten(-2)
        weights = H.new_zeros(*H.shape[:-2], self.num_coordinates)
        # Every step empties at least one entry, so (n−1)² + 1 steps empty the matrix.
        for _ in range((self.n - 1) ** 2 + 1):
            bottleneck = torch.where(P.bool(), rest.unsqueeze(-2), torch.inf).amin(-1)  # [..., n!]
            weight, k = bottleneck.clamp(min=0).max(-1, keepdim=True)
            weights.scatter_add_(-1, k, weight)
            rest = rest - weight * P[k.squeeze(-1)]
        return weights.clamp(min=torch.finfo(H.dtype).tiny).log()

    @classmethod
    def examples(cls) -> tuple[Permutation, ...]:
        return tuple(cls(n=n) for n in (1, 2, 3, 4, 5))
