"""Doubly stochastic matrices, filled entry by entry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.manifolds import Invariant, Manifold, invariants

MAX_N = 32
_FAR = 64.0  # exp(-64) vanishes beside 1 in float64


@dataclass(frozen=True)
class Transportation(Manifold):
    """Doubly stochastic matrices as points of the transportation polytope with all margins 1.

    **Set**: ``H ≥ 0, H 1 = 1, Hᵀ 1 = 1``.

    **Map**: entry by entry, row by row, ``Hᵢⱼ = L + (U − L) σ(θᵢⱼ)``, where [L, U] is what the
    entries before it leave to it: at most what remains of its row and of its column, and enough for the later columns
    to hold the rest of the row. (n−1)² coordinates, as many as the set has dimensions; the last row and column are
    what remains. Every matrix with positive entries is reached, and the others, the identity included, in the limit.

    **Exactness**: exact to rounding for any finite coordinates. All masses that remain are sums of nonnegative
    numbers, see ``fill``; nothing is clamped. There are kinks where two bounds change places. Costs (n−1)² steps that
    wait for each other.

    Raises:
        ValueError: n > 32.

    Source: TBP-mHC, arXiv 2605.21724.

    >>> import torch
    >>> Transportation(n=2)(torch.zeros(1))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    name = "transportation"
    api_version = 1
    exact = True
    source = "arXiv 2605.21724"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n > MAX_N:
            raise ValueError(
                f"Transportation: n={self.n} would take {(self.n - 1) ** 2} steps one after the other; the largest n "
                f"is {MAX_N}. Use manifold 'kronecker' with transportation factors"
            )

    @property
    def num_coordinates(self) -> int:
        return (self.n - 1) ** 2

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (invariants.row_sums, invariants.column_sums, invariants.nonnegative)

    @property
    def norm_bound(self) -> float:
        return 1.0

    def forward(self, theta: Tensor) -> Tensor:
        inner = self.n - 1
        t = theta.reshape(*theta.shape[:-1], inner, inner)
        share, rest = t.sigmoid(), (-t).sigmoid()  # 1 − σ(t) would lose what is small
        one = theta.new_ones(theta.shape[:-1])
        columns, rows = [one] * self.n, []
        for i in range(inner):
            # capacity[j]: what the columns from j on still take.
            capacity = torch.stack(columns[::-1], -1).cumsum(-1).flip(-1).unbind(-1)
            row, below = one, (inner - i) * one
            entries, left = [], []
            for j in range(inner):
                x, row, column, below = fill(row, below, columns[j], capacity[j + 1], share[..., i, j], rest[..., i, j])
                entries.append(x)
                left.append(column)
            rows.append(torch.stack([*entries, row], -1))
            columns = [*left, below]
        return torch.stack([*rows, torch.stack(columns, -1)], -2)

    def reference(self, theta: Tensor) -> Tensor:
        """The bounds as the paper writes them, by subtraction from what remains."""
        inner = self.n - 1
        H = theta.new_zeros(*theta.shape[:-1], self.n, self.n)
        columns = theta.new_ones(*theta.shape[:-1], self.n)
        for i in range(inner):
            row = theta.new_ones(theta.shape[:-1])
            for j in range(inner):
                lower = (row - columns[..., j + 1 :].sum(-1)).clamp(min=0)
                upper = torch.minimum(row, columns[..., j])
                x = lower + (upper - lower) * theta[..., i * inner + j].sigmoid()
                H[..., i, j], row = x, row - x
            H[..., i, inner] = row
            columns = columns - H[..., i, :]
        H[..., inner, :] = columns
        return H

    def identity_coordinates(self) -> Tensor:
        return self.initial_coordinates(_FAR)

    def initial_coordinates(self, sharpness: float) -> Tensor:
        """Coordinates of the matrix whose entries off the diagonal are ``exp(-sharpness)`` times those on it."""
        logits = -float(sharpness) * (1 - torch.eye(self.n, dtype=torch.float64, device="cpu"))
        return self.coordinates(logits.softmax(-1))

    def coordinates(self, H: Tensor) -> Tensor:
        """The masses of the four blocks that entry (i, j) splits the rest of the matrix into say where it lies."""
        H = self._require_member(H, *self.invariants).detach().clamp(min=0)
        right = H.flip(-1).cumsum(-1).flip(-1)[..., :-1, 1:]  # what follows in the row
        under = H.flip(-2).cumsum(-2).flip(-2)  # the column from here on
        beyond = under.flip(-1).cumsum(-1).flip(-1)[..., 1:, 1:]  # what lies below and to the right
        tiny = torch.finfo(H.dtype).tiny
        # x − L over U − x, as in ``fill``.
        above_lower = torch.minimum(H[..., :-1, :-1], beyond).clamp(min=tiny)
        below_upper = torch.minimum(right, under[..., 1:, :-1]).clamp(min=tiny)
        return (above_lower.log() - below_upper.log()).flatten(-2)

    @classmethod
    def examples(cls) -> tuple[Transportation, ...]:
        return tuple(cls(n=n) for n in (1, 2, 3, 4, 6))


def fill(
    row: Tensor, below: Tensor, column: Tensor, capacity: Tensor, share: Tensor, rest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split the mass that remains around an entry into four cells.

    What remains is a 2×2 table, ``row`` and the rows ``below`` it by ``column`` and the ``capacity`` of the columns
    after it; ``row + below = column + capacity``. Its first cell x lies between ``L = max(0, row − capacity)`` and
    ``U = min(row, column)``, and ``U − L`` is the smallest margin. Each cell is its own lower bound, a difference that
    cannot be negative, and a share of that width: no cancellation makes a cell negative or upsets a sum.

    Two comparisons choose all the bounds. A maximum for each of them would have the same values, but where margins are
    equal, as at theta = 0, derivatives from different sides, which move the sums.

    Args:
        row, below, column, capacity: ``[...]`` margins, nonnegative.
        share, rest: ``[...]`` σ(t) and 1 − σ(t).

    Returns:
        ``[...]`` each: the entry, the rest of its row, the rest of its column, and what lies below and after it.
    """
    overflows, outgrows = row > capacity, row > column
    width = torch.where(overflows, torch.where(outgrows, below, capacity), torch.where(outgrows, column, row))
    more, less = share * width, rest * width
    none = torch.zeros_like(row)
    return (
        torch.where(overflows, row - capacity, none) + more,
        torch.where(outgrows, row - column, none) + less,
        torch.where(outgrows, none, column - row) + less,
        torch.where(overflows, none, capacity - row) + more,
    )
