"""Doubly stochastic matrices by Sinkhorn–Knopp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hyperconn.kernels import entries_together, round_to_doubly_stochastic, sinkhorn
from hyperconn.manifolds.core.invariants import DOUBLY_STOCHASTIC, Invariant, column_sums, nonnegative, row_sums
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.options import require_choice, require_int, require_number
from hyperconn.manifolds.core.symmetries import Action, Symmetry, on_entries, relabelled, transposed
from hyperconn.manifolds.registry import register

# After so many sweeps of moderate logits (standard deviation below 1) the limit is reached.
_CONVERGED = 200


@register("birkhoff", "sinkhorn", "mhc")
@dataclass(frozen=True)
class Birkhoff(Manifold):
    """Doubly stochastic matrices, reached by alternately normalising columns and rows of ``exp(theta)``.

    **Set**: ``H ≥ 0, H 1 = 1, Hᵀ 1 = 1``.

    **Map**: n² logits, row by row; ``iterations`` sweeps, each first along ``first_axis`` and then along the
    other one. In the log domain, so finite for every finite logit. Not a bijection: adding constants along the
    axis that is normalised first changes nothing, along the other axis nothing in the limit of many sweeps.

    **Exactness**: iterative. The axis normalised last is exact; the other is off by about 4e-4, 0.03 and 0.07
    after 20 sweeps of random 4×4 logits of standard deviation 1, 2 and 5. With ``finish="round"`` both are
    exact to rounding for every finite logit.

    Options:
        iterations: sweeps, 20 in the papers.
        first_axis: ``"columns"`` (mHC paper: rows exact) or ``"rows"`` (DeepSeek-V4 code, Megatron, Liger).
        eps: added to the denominators (published code: 1e-6); 0 for none.
        eps_mode: ``"denominator"``, or ``"softmax"``: start from softmax + eps, as DeepSeek-V4 does.
        finish: ``"none"``, or ``"round"`` (arXiv 1705.09634).
        gradient: ``"unrolled"``, the derivative of the sweeps as they are; or ``"implicit"``, the derivative
            of their limit, with memory that does not grow with ``iterations`` (arXiv 2602.18308).

    Raises:
        ValueError: an option outside its range.

    Source: mHC, arXiv 2512.24880.

    >>> import torch
    >>> H = Birkhoff(n=4, finish="round")(torch.randn(3, 16))
    >>> bool(torch.allclose(H.sum(-2), torch.ones(3, 4)))
    True
    """

    iterations: int = 20
    first_axis: Literal["columns", "rows"] = "columns"
    eps: float = 0.0
    eps_mode: Literal["denominator", "softmax"] = "denominator"
    finish: Literal["none", "round"] = "none"
    gradient: Literal["unrolled", "implicit"] = "unrolled"

    name = "birkhoff"
    source = "arXiv 2512.24880"
    invariants = DOUBLY_STOCHASTIC

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self, "iterations", minimum=1, maximum=10_000)
        require_choice(self, "first_axis", ("columns", "rows"))
        require_choice(self, "eps_mode", ("denominator", "softmax"))
        require_choice(self, "finish", ("none", "round"))
        require_choice(self, "gradient", ("unrolled", "implicit"))
        require_number(self, "eps")
        if self.eps >= 1.0:
            raise ValueError(f"Birkhoff: eps must lie in [0, 1), got {self.eps!r}")

    @property
    def exact(self) -> bool:
        # One stream is normalised to 1 by any sweep; with more, only the rounding step finishes the job.
        return self.finish == "round" or (self.n == 1 and self.eps == 0.0)

    @property
    def num_coordinates(self) -> int:
        return self.n**2

    @property
    def exact_invariants(self) -> tuple[Invariant, ...]:
        if self.exact:
            return self.invariants
        if self.eps > 0.0:
            return (nonnegative,)
        return (row_sums if self.first_axis == "columns" else column_sums, nonnegative)

    @property
    def norm_bound(self) -> float | None:
        return 1.0 if self.exact else None

    def forward(self, theta: Tensor) -> Tensor:
        H = sinkhorn(
            theta.unflatten(-1, (self.n, self.n)),
            self.iterations,
            first_axis=self.first_axis,
            eps=self.eps,
            eps_mode=self.eps_mode,
            implicit=self.gradient == "implicit",
        )
        return entries_together(round_to_doubly_stochastic(H) if self.finish == "round" else H)

    def reference(self, theta: Tensor) -> Tensor:
        """Sweeps by division, and Algorithm 2 of arXiv 1705.09634."""
        M = theta.unflatten(-1, (self.n, self.n))
        M = (M - M.amax((-2, -1), keepdim=True)).exp()
        sweep = (-2, -1) if self.first_axis == "columns" else (-1, -2)
        for half, dim in enumerate(sweep * self.iterations):
            if half == 0 and self.eps_mode == "softmax":
                M = M / M.sum(dim, keepdim=True) + self.eps
            else:
                M = M / (M.sum(dim, keepdim=True) + self.eps)
        if self.finish == "none":
            return M
        for dim in (-1, -2):
            M = M / M.sum(dim, keepdim=True).clamp(min=1)
        row_error, column_error = 1 - M.sum(-1, keepdim=True), 1 - M.sum(-2, keepdim=True)
        mass = row_error.sum(-2, keepdim=True)
        missing = mass > self.n * torch.finfo(M.dtype).eps
        # The division is kept away from zero: autograd multiplies what is not chosen by 0, which makes NaN of infinity.
        return M + torch.where(missing, row_error * column_error / torch.where(missing, mass, 1.0), 0.0)

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        shifts: tuple[Action, Action] = (lambda L, draw: L + draw[0]), (lambda L, draw: L + draw[1, :, None])
        first, other = shifts if self.first_axis == "columns" else reversed(shifts)
        found = [Symmetry("relabelling", "m(P L Pᵀ) = P m(L) Pᵀ", on_entries(relabelled), relabelled)]
        if self.eps == 0.0 or self.eps_mode == "softmax":
            found.append(Symmetry("first_shift", "constants along the first axis change nothing", on_entries(first)))
        if self.eps == 0.0 and self.iterations >= _CONVERGED:
            found.append(Symmetry("other_shift", "constants along the other axis change nothing", on_entries(other)))
            found.append(Symmetry("transposition", "m(Lᵀ) = m(L)ᵀ", on_entries(transposed), transposed))
        return tuple(found)

    def device_pair(self) -> Any | None:
        """The device pair; None for the unrolled gradient of more than 32 iterations."""
        from hyperconn.kernels.fused.maps.sinkhorn import sinkhorn_pair

        return sinkhorn_pair(
            self.iterations,
            first_axis=self.first_axis,
            eps=self.eps,
            eps_mode=self.eps_mode,
            implicit=self.gradient == "implicit",
            rounded=self.finish == "round",
        )

    @property
    def contains_identity(self) -> bool:
        # eps leaves mass beside the diagonal, and rounding puts mass there, whatever the logits are.
        return self.eps == 0.0 or (self.n == 1 and self.finish == "round")

    def initial_coordinates(self, sharpness: float) -> Tensor:
        return (sharpness * (torch.eye(self.n, dtype=torch.float64) - 1)).flatten()

    def coordinates(self, H: Tensor) -> Tensor:
        """Logarithms of the entries.

        Raises:
            ValueError: H is not doubly stochastic.
            NotImplementedError: for eps > 0, which moves even a doubly stochastic matrix by a few eps.
        """
        if self.eps > 0.0:
            return super().coordinates(H)
        H = self._require_member(H, *self.invariants)
        return H.clamp(min=torch.finfo(H.dtype).tiny).log().flatten(-2)

    @classmethod
    def examples(cls) -> tuple[Birkhoff, ...]:
        return (
            *(cls(n=n, finish="round") for n in (1, 2, 3, 4, 8)),
            *(cls(n=n) for n in (1, 2, 4)),
            cls(n=6, iterations=188),  # so many that in float64 some of them, an odd number, run in logarithms
            cls(n=3, first_axis="rows"),
            cls(n=3, iterations=1),
            cls(n=4, iterations=2, first_axis="rows"),
            cls(n=4, first_axis="rows", finish="round"),
            cls(n=3, iterations=2, finish="round"),
            cls(n=4, iterations=300, gradient="implicit"),
            cls(n=3, iterations=300, first_axis="rows", gradient="implicit", finish="round"),
            cls(n=4, first_axis="rows", eps=1e-6, eps_mode="softmax"),
            cls(n=3, iterations=2, eps=1e-6, eps_mode="softmax"),
            cls(n=4, iterations=3, eps=1e-6),
            cls(n=3, iterations=250, first_axis="rows", eps=1e-9, eps_mode="softmax", gradient="implicit"),
            *(cls(n=n, eps=1e-6, finish="round") for n in (1, 4)),
            cls(n=1, eps=1e-6),
        )
