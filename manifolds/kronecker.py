"""Kronecker products of registered manifolds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core import invariants
from hyperconn.manifolds.core.errors import shown
from hyperconn.manifolds.core.factorisation import Misfit, kronecker_product, nearest_factors
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.map import MAX_STREAMS
from hyperconn.manifolds.core.plain_data import MAX_DEPTH, require_small
from hyperconn.manifolds.identity import Identity
from hyperconn.manifolds.permutation import MAX_N, Permutation
from hyperconn.manifolds.registry import make, register


def prime_factors(n: int) -> tuple[int, ...]:
    """Primes of n in ascending order; empty for 1."""
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p = p + 1 if p * p <= n else n
    return tuple(factors)


@register("kronecker", "kromhc")
@dataclass(frozen=True)
class Kronecker(Manifold):
    """Products ``U₁ ⊗ … ⊗ U_K`` of members of smaller manifolds.

    **Set**: it inherits the invariants that all factors have and that Kronecker products preserve; with the
    default factors it is a set of doubly stochastic matrices.

    **Map**: the coordinates of the factors, one after the other, in one group. The 2×2 factor is
    ``[[p, 1−p], [1−p, p]]``: K pairs of coordinates for n = 2^K where a permutation mixture has n!.

    **Exactness**: exact where every factor is.

    Options:
        factors: sizes whose product is n, each a ``permutation`` of that size; or tables
            ``{"manifold": name, "n": size, **options}``; or manifolds. Default: the primes of n.

    Raises:
        ValueError: the sizes do not multiply to n, or n has a prime factor above 6 and no factors are given.

    Source: KromHC, arXiv 2601.21579.

    >>> Kronecker(n=8).num_coordinates
    6
    >>> Kronecker(n=4, factors=({"manifold": "stiefel", "n": 2}, 2)).num_coordinates
    3
    """

    factors: tuple[Any, ...] | None = None

    name = "kronecker"
    source = "arXiv 2601.21579"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.factors
        if given is None:
            given = prime_factors(self.n)
            if given and max(given) > MAX_N:
                raise ValueError(
                    f"Kronecker: n={self.n} has the prime factor {max(given)}, too large for a permutation mixture; "
                    f"pass factors, for example [{{'manifold': 'birkhoff', 'n': {max(given)}, 'finish': 'round'}}, …]"
                )
        if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
            raise TypeError(f"Kronecker: factors must be a list of sizes, tables or manifolds, got {shown(given)}")
        if len(given) > MAX_STREAMS:
            raise ValueError(f"Kronecker: factors has {len(given)} entries, at most {MAX_STREAMS} are taken")
        require_small(given, "Kronecker: factors")
        parts = tuple(_factor(spec) for spec in given)
        sizes = [part.n for part in parts]
        if math.prod(sizes) != self.n:
            raise ValueError(
                f"Kronecker: factors of sizes {sizes} multiply to {math.prod(sizes)}, expected n={self.n}; "
                f"for example factors={prime_factors(self.n)}"
            )
        if _depth(parts) > MAX_DEPTH:
            raise ValueError(f"Kronecker: factors are products of products more than {MAX_DEPTH} deep; use one list")
        object.__setattr__(self, "factors", parts)

    @property
    def parts(self) -> tuple[Manifold, ...]:
        """The factor manifolds."""
        assert self.factors is not None
        return self.factors

    @property
    def exact(self) -> bool:
        return all(part.exact for part in self.parts)

    @property
    def num_coordinates(self) -> int:
        return sum(part.num_coordinates for part in self.parts)

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (*self._inherited([part.invariants for part in self.parts]), *self._of_factors)

    @property
    def exact_invariants(self) -> tuple[Invariant, ...]:
        of_factors = self._of_factors if self.exact else ()
        return (*self._inherited([part.exact_invariants for part in self.parts]), *of_factors)

    @property
    def _of_factors(self) -> tuple[Invariant, ...]:
        """What makes the set: the other invariants are what it has in common with that of each factor."""
        parts = self._leaves()
        return (Invariant("factors", "H = U₁ ⊗ … ⊗ U_K, each in its set", Misfit(parts)),) if parts else ()

    def _leaves(self) -> tuple[Manifold, ...]:
        """The parts, with products replaced by their own parts: factors of factors are factors."""
        found: list[Manifold] = []
        for part in self.parts:
            found.extend(part._leaves() if isinstance(part, Kronecker) else (part,))
        return tuple(found)

    @staticmethod
    def _inherited(sets: list[tuple[Invariant, ...]]) -> tuple[Invariant, ...]:
        if not sets:  # the empty product is the 1×1 identity
            return invariants.DOUBLY_STOCHASTIC
        shared = _shared(sets)
        # A doubly stochastic factor has norm 1 without saying so; a rotation beside it shares nothing else with it.
        return shared or _shared([_with_norm(held) for held in sets])

    @property
    def contains_identity(self) -> bool:
        return all(part.contains_identity for part in self.parts)

    @property
    def norm_bound(self) -> float | None:
        bounds = [part.norm_bound for part in self.parts]
        return None if None in bounds else math.prod(b for b in bounds if b is not None)

    def tolerance(self, dtype: torch.dtype) -> float:
        return max([super().tolerance(dtype), *(self.n * part.tolerance(dtype) for part in self.parts)])

    def forward(self, theta: Tensor) -> Tensor:
        pieces = theta.split([part.num_coordinates for part in self.parts], -1)
        members = [part.forward(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return reduce(kronecker_product, members) if members else theta.new_ones(*theta.shape[:-1], 1, 1)

    def reference(self, theta: Tensor) -> Tensor:
        """``[[a₀₀B, a₀₁B, …], …]`` of the references of the factors, which all have to have one."""
        H, start = theta.new_ones(*theta.shape[:-1], 1, 1), 0
        for part in self.parts:
            B = part.reference(theta[..., start : start + part.num_coordinates])
            rows = [torch.cat([a[..., None, None] * B for a in row.unbind(-1)], -1) for row in H.unbind(-2)]
            H, start = torch.cat(rows, -2), start + part.num_coordinates
        return H

    def device_pair(self) -> Any | None:
        """The device pair; None with factors other than permutation mixtures."""
        parts = [part for part in self.parts if part != Identity(n=1)]  # which changes nothing
        if any(type(part) is not Permutation for part in parts):
            return None
        from hyperconn.kernels.fused.maps.kronecker import kronecker_pair

        return kronecker_pair([part.n for part in parts])

    def identity_coordinates(self) -> Tensor:
        none = torch.empty(0, dtype=torch.float64)
        return torch.cat([none, *(part.identity(dtype=torch.float64, device="cpu") for part in self.parts)])

    def initial_coordinates(self, sharpness: float) -> Tensor:
        none = torch.empty(0, dtype=torch.float64)
        return torch.cat([none, *(part.initial(sharpness, dtype=torch.float64, device="cpu") for part in self.parts)])

    def coordinates(self, H: Tensor) -> Tensor:
        """Coordinates of the factors of the nearest product, each brought to the scale and sign of its own set.

        Raises:
            ValueError: the nearest factor is not a member of its manifold.
        """
        working = self._require_matrix(H).detach()
        parts = self._leaves()
        found = [working.new_empty(*working.shape[:-2], 0)]
        for part, factor in zip(parts, nearest_factors(working, parts), strict=True):
            # Back in the dtype of H, so that each factor knows how far rounding may have taken it from its set.
            try:
                found.append(part.coordinates(factor.to(H.dtype)).to(working.dtype))
            except ValueError as error:
                raise ValueError(
                    f"{self!r} has no coordinates for this matrix: its nearest factor fails: {error}"
                ) from error
        return torch.cat(found, -1)

    @classmethod
    def examples(cls) -> tuple[Kronecker, ...]:
        rotation = {"manifold": "stiefel", "n": 2}
        free = {"manifold": "unconstrained", "n": 2}
        return (
            *(cls(n=n) for n in (1, 2, 3, 4, 6, 8, 9)),
            cls(n=4, factors=(4,)),
            cls(n=4, factors=(rotation, rotation)),
            cls(n=4, factors=(rotation, 2)),
            cls(n=8, factors=({"manifold": "stiefel", "n": 4}, rotation)),
            cls(n=8, factors=(rotation, rotation, rotation)),
            cls(n=6, factors=({"manifold": "stiefel", "n": 3}, 2)),
            cls(n=8, factors=({"manifold": "spectral_sphere", "n": 4}, 2)),
            cls(n=4, factors=({"manifold": "birkhoff", "n": 2, "finish": "round"}, 2)),
            cls(n=6, factors=({"manifold": "birkhoff", "n": 3}, 2)),
            cls(n=6, factors=({"manifold": "grassmann", "n": 3}, rotation)),
            cls(n=9, factors=({"manifold": "grassmann", "n": 3, "p": 2},) * 2),
            cls(n=6, factors=({"manifold": "birkhoff", "n": 3}, rotation)),
            cls(n=6, factors=(3, free)),
            cls(n=4, factors=(free, rotation)),
            cls(n=12, factors=(2, 3, rotation)),
            cls(n=12, factors=(cls(n=6, factors=(rotation, 3)), rotation)),
        )


def _shared(sets: list[tuple[Invariant, ...]]) -> tuple[Invariant, ...]:
    return tuple(i for i in sets[0] if i.closed_under_kronecker and all(i in other for other in sets[1:]))


def _with_norm(held: tuple[Invariant, ...]) -> tuple[Invariant, ...]:
    """``held`` and, for doubly stochastic matrices, the norm that follows from it."""
    if set(invariants.DOUBLY_STOCHASTIC) <= set(held):
        return tuple(dict.fromkeys((*held, invariants.spectral_norm, invariants.non_expansive)))
    return held


def _depth(parts: tuple[Manifold, ...]) -> int:
    return 1 + max((_depth(part.parts) for part in parts if isinstance(part, Kronecker)), default=0)


def _factor(spec: object) -> Manifold:
    if isinstance(spec, Manifold):
        return spec
    if isinstance(spec, int) and not isinstance(spec, bool):
        return Permutation(n=spec)
    if isinstance(spec, Mapping):
        if not {"manifold", "n"} <= set(spec):
            raise ValueError(f"Kronecker: a factor table needs the keys 'manifold' and 'n', got {shown(dict(spec))}")
        options = {key: value for key, value in spec.items() if key not in ("manifold", "n")}
        return make(spec["manifold"], n=spec["n"], **options)
    raise TypeError(f"Kronecker: a factor is a size, a table or a manifold, got {shown(spec)}")
