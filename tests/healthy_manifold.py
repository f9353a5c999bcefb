"""A manifold in keeping with every law, from which tests derive others."""

from dataclasses import dataclass

import torch

from hyperconn.manifolds import Manifold, Symmetry, invariants


@dataclass(frozen=True)
class Circulant(Manifold):
    """Mixtures of cyclic shifts: doubly stochastic, n coordinates, and in keeping with every law."""

    name = "healthy"
    exact = True

    @property
    def num_coordinates(self):
        return self.n

    invariants = (invariants.row_sums, invariants.column_sums, invariants.nonnegative)
    norm_bound = 1.0

    @property
    def symmetries(self):
        return (
            Symmetry("shift", "m(θ + c) = m(θ)", lambda theta, draw: theta + draw[0, 0]),
            Symmetry("reversal", "shifts the other way: m(θ)ᵀ", self._reversed, lambda H, draw: H.mT),
        )

    def _reversed(self, theta, draw):
        return theta[..., [-k % self.n for k in range(self.n)]]

    def reference(self, theta):
        weights = theta.exp() / theta.exp().sum(-1, keepdim=True)
        return torch.stack([weights.roll(i, -1) for i in range(self.n)], -2)

    def forward(self, theta):
        steps = torch.arange(self.n, device=theta.device)
        return torch.softmax(theta, -1)[..., (steps - steps[:, None]) % self.n]

    def identity_coordinates(self):
        return self.initial_coordinates(64.0)

    def initial_coordinates(self, sharpness):
        return [0.0, *[-sharpness] * (self.n - 1)]

    def coordinates(self, H):
        H = self._require_member(H, *self.invariants)
        return H[..., 0, :].clamp(min=torch.finfo(H.dtype).tiny).log()


HEALTHY = Circulant(n=3)


@dataclass(frozen=True)
class Ball(Manifold):
    """Contractions: a set with an interior, where no single condition is an equation."""

    name = "ball"
    contains_identity = False
    exact = True

    @property
    def num_coordinates(self):
        return self.n**2

    invariants = (invariants.non_expansive,)
    norm_bound = 1.0

    def forward(self, theta):
        entries = theta.unflatten(-1, (self.n, self.n))
        size = entries.abs().amax((-1, -2), keepdim=True).clamp(min=1).detach()
        entries = entries / size
        return entries / (entries.square().sum((-1, -2), keepdim=True) + 1 / size.square()).sqrt()

    def identity_coordinates(self):
        return 1e3 * torch.eye(self.n).flatten()


class Positive(Ball):
    """Matrices of nonnegative entries: products of them grow without bound, and nobody says otherwise."""

    name = "positive"
    norm_bound = None
    invariants = (invariants.nonnegative,)

    def forward(self, theta):
        return torch.nn.functional.softplus(theta).unflatten(-1, (self.n, self.n))

    def identity_coordinates(self):
        return (torch.eye(self.n) * 40.54 - 40).flatten()
