"""The identity alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core import invariants
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.map import MAX_FUSED_STREAMS
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
    exact = True
    source = "transformers hy_v4"

    @property
    def num_coordinates(self) -> int:
        return 0

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (
            invariants.is_identity,
            invariants.row_sums,
            invariants.column_sums,
            invariants.nonnegative,
            invariants.orthogonal,
            invariants.non_expansive,
        )

    @property
    def norm_bound(self) -> float:
        return 1.0

    @property
    def kernel(self) -> Any | None:
        if self.n > MAX_FUSED_STREAMS:
            return None
        # Here and not above: nothing but the fused kernels may need triton.
        from hyperconn.kernels.fused.maps.trivial import IDENTITY

        return IDENTITY

    def forward(self, theta: Tensor) -> Tensor:
        eye = torch.eye(self.n, dtype=theta.dtype, device=theta.device)
        return eye.expand(*theta.shape[:-1], self.n, self.n)

    def identity_coordinates(self) -> Tensor:
        return torch.empty(0, dtype=torch.float64)

    def coordinates(self, H: Tensor) -> Tensor:
        return self._require_member(H, invariants.is_identity).new_empty(*H.shape[:-2], 0)
