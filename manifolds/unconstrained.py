"""All matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.registry import register


@register("unconstrained", "hc")
@dataclass(frozen=True)
class Unconstrained(Manifold):
    """Every n×n matrix: the original hyper-connections, and the control in any comparison.

    **Set**: R^{n×n}, so there is nothing to violate. **Map**: the n² coordinates are the entries, row by row.
    **Exactness**: trivially exact; products of members grow or vanish exponentially with depth.

    Source: HC, arXiv 2409.19606.

    >>> import torch
    >>> Unconstrained(n=2)(torch.arange(4.0))
    tensor([[0., 1.],
            [2., 3.]])
    """

    name = "unconstrained"
    source = "arXiv 2409.19606"
    exact = True
    invariants = ()

    @property
    def num_coordinates(self) -> int:
        return self.n**2

    def device_pair(self) -> Any | None:
        from hyperconn.kernels.fused.maps.trivial import UNCONSTRAINED

        return UNCONSTRAINED

    def forward(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (self.n, self.n))

    def reference(self, theta: Tensor) -> Tensor:
        """Row after row."""
        return torch.stack([theta[..., i * self.n : (i + 1) * self.n] for i in range(self.n)], -2)

    def identity_coordinates(self) -> Tensor:
        return torch.eye(self.n, dtype=torch.float64).flatten()

    def coordinates(self, H: Tensor) -> Tensor:
        return self._require_matrix(H).flatten(-2)
