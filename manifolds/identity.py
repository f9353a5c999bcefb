"""The identity alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core.invariants import DOUBLY_STOCHASTIC, is_identity, non_expansive, orthogonal
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.registry import register


@register("identity", "ihc")
@dataclass(frozen=True)
class Identity(Manifold):
    """The one-point set {I}: streams are read and written, never mixed.

    **Set**: ``H = I``. **Map**: no coordinates. **Exactness**: exact.

    Source: the ``hy_v4`` model of Hugging Face transformers applies this residual.

    >>> import torch
    >>> Identity(n=2)(torch.empty(5, 0)).shape
    torch.Size([5, 2, 2])
    """

    name = "identity"
    source = "transformers hy_v4"
    exact = True
    invariants = (is_identity, *DOUBLY_STOCHASTIC, orthogonal, non_expansive)
    norm_bound = 1.0
    num_coordinates = 0

    def device_pair(self) -> Any | None:
        from hyperconn.kernels.fused.maps.trivial import IDENTITY

        return IDENTITY

    def forward(self, theta: Tensor) -> Tensor:
        eye = torch.eye(self.n, dtype=theta.dtype, device=theta.device)
        return eye.expand(*theta.shape[:-1], self.n, self.n)

    def identity_coordinates(self) -> tuple[float, ...]:
        return ()

    def coordinates(self, H: Tensor) -> Tensor:
        return self._require_member(H, is_identity).new_empty(*H.shape[:-2], 0)
