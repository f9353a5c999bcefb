"""The contract of a manifold: a map from free coordinates to constrained n×n matrices, and what it promises of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.manifolds.core.errors import PartError, shown
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.map import Map, attribute, real_numbers, working_dtype
from hyperconn.manifolds.core.symmetries import Symmetry

# exp(-64) · 6! vanishes beside 1 in float64, and tanh(64) is 1 there: the identity to rounding in every dtype.
_FAR = 64.0


@dataclass(frozen=True)
class Manifold(Map):
    """A set of n×n matrices together with a map that reaches it from unconstrained coordinates.

    Subclass as a frozen dataclass; options are further fields, refused in ``__post_init__`` when bad. A subclass
    says ``name``, ``exact``, ``num_coordinates``, ``invariants``, ``forward`` and ``identity_coordinates``; the rest
    has defaults. It says numbers; dtype and device are the business of this class.

    Calling the manifold maps ``theta [..., P] -> H [..., n, n]``. NaN in a token's coordinates makes that token's
    matrix NaN, inf makes it NaN or the limit at infinity; nothing hangs, and no other token is touched.
    """

    @attribute
    def value_shape(self) -> tuple[int, ...]:
        return (self.n, self.n)

    @attribute
    @abstractmethod
    def exact(self) -> bool:
        """Whether every invariant holds to ``tolerance(dtype)`` for any finite coordinates."""

    @attribute
    @abstractmethod
    def invariants(self) -> tuple[Invariant, ...]:
        """The conditions that define the set."""

    def identity_coordinates(self) -> Tensor | Sequence[float]:
        """``[P]`` numbers: the coordinates of the identity, or of the nearest point that the map reaches.

        By default those of the sharpest start, for a class that says ``initial_coordinates``.
        """
        if type(self).initial_coordinates is Manifold.initial_coordinates:
            raise NotImplementedError(f"{type(self).__name__} has to define identity_coordinates")
        return self.initial_coordinates(_FAR)

    @classmethod
    def _missing(cls) -> tuple[str, ...]:
        """What a class has to define and does not; one that places its identity itself need not say its numbers."""
        names = ("identity", "identity_coordinates", "initial_coordinates")
        own = any(getattr(cls, name) is not getattr(Manifold, name) for name in names)
        return () if own else ("identity_coordinates",)

    def initial_coordinates(self, sharpness: float) -> Tensor | Sequence[float]:
        """``[P]`` numbers near the identity from which ``H`` can still learn.

        Where the identity lies at infinity (a softmax, say) ``sharpness`` is the gap between its logit and the
        others: the larger, the nearer to the identity and the smaller the first gradients. Elsewhere it is
        unused and the identity itself is returned.
        """
        return self.identity(dtype=torch.float64, device="cpu")  # which a class may have defined by itself

    @attribute
    def exact_invariants(self) -> tuple[Invariant, ...]:
        """The invariants that hold to ``tolerance(dtype)`` even where the manifold as a whole is not exact."""
        return self.invariants if self.exact else ()

    @attribute
    def contains_identity(self) -> bool:
        """Whether ``m(m.identity())`` is the identity to rounding."""
        return True

    @attribute
    def idle_coordinates(self) -> tuple[int, ...]:
        """Coordinates that change nothing, where a paper has them nevertheless."""
        return ()

    @attribute
    def norm_bound(self) -> float | None:
        """An upper bound of ``‖H‖₂`` over the whole set, or None where there is none."""
        return None

    @attribute
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Changes of the coordinates with a known effect on H, for the laws to hold the map to."""
        return ()

    @attribute
    def coordinate_groups(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the coordinate groups, in order; a layer learns one scale for each."""
        return (("residual", self.num_coordinates),) if self.num_coordinates else ()

    def coordinates(self, H: Tensor) -> Tensor:
        """``[..., n, n] -> [..., P]`` with ``m(m.coordinates(H)) = H`` for members H; not differentiable.

        Raises:
            NotImplementedError: no right inverse is known.
        """
        raise NotImplementedError(f"{self!r} has no right inverse: start from identity() or initial() instead")

    def tolerance(self, dtype: torch.dtype) -> float:
        """Largest violation that rounding alone explains: ``16 n eps(dtype)``.

        The maps themselves stay well below; the room is for whoever measures with LAPACK's singular values, which
        are off by up to 40 eps where several of them nearly coincide.
        """
        return 16.0 * self.n * torch.finfo(dtype).eps

    def identity(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """``[P]`` coordinates of the identity, or of the nearest point that the map reaches."""
        with real_numbers():
            numbers = self._numbers("identity_coordinates", self.identity_coordinates())
        return torch.tensor(numbers, dtype=dtype, device=device)

    def initial(
        self,
        sharpness: float = 8.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """``[P]`` coordinates near the identity from which ``H`` can still learn, see ``initial_coordinates``."""
        with real_numbers():
            numbers = self._numbers("initial_coordinates", self.initial_coordinates(float(sharpness)))
        return torch.tensor(numbers, dtype=dtype, device=device)

    def _numbers(self, member: str, given: object) -> list[float]:
        """What ``identity_coordinates`` and its like gave, as ``P`` numbers."""
        wanted = f"{member} of {type(self).__qualname__}(n={self.n}) must return {self.num_coordinates} numbers, one"
        try:
            numbers = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise PartError(f"{wanted} a coordinate, got {shown(given)}") from None
        if numbers.shape != (self.num_coordinates,):
            raise PartError(f"{wanted} a coordinate, got shape {list(numbers.shape)}")
        found: list[float] = numbers.tolist()
        return found

    def violation(self, H: Tensor) -> Tensor:
        """Worst residual of ``H [..., n, n]`` over every invariant: ``[...]`` in float64, NaN where H is NaN."""
        self._require_matrix(H)
        worst = torch.zeros(H.shape[:-2], dtype=torch.float64, device=H.device)
        # An unconstrained set still has to say that a NaN is no member of it.
        worst = worst + torch.where(H.isfinite().all(-1).all(-1), 0.0, torch.nan)
        for invariant in self.invariants:
            worst = torch.maximum(worst, invariant.residual(H))
        return worst

    def _hint(self) -> str:
        return f"; its coordinate groups are {dict(self.coordinate_groups)}"

    def _require_matrix(self, H: Tensor) -> Tensor:
        if not H.is_floating_point():
            raise TypeError(f"{self!r} takes floating point matrices, got {H.dtype}; convert with .float() first")
        if H.shape[-2:] != (self.n, self.n):
            raise ValueError(f"{self!r} holds matrices of shape [..., {self.n}, {self.n}], got {list(H.shape)}")
        return H.to(working_dtype(H.dtype))

    def _require_member(self, H: Tensor, *invariants: Invariant) -> Tensor:
        """Working-precision ``H``, refused where it is further from ``invariants`` than rounded data can be."""
        checked = self._require_matrix(H)
        limit = torch.finfo(H.dtype).eps ** 0.5
        for invariant in invariants:
            worst = float(invariant.residual(H).amax()) if H.numel() else 0.0
            if not worst <= limit:
                raise ValueError(
                    f"{self!r} has no coordinates for this matrix: {invariant.name} ({invariant.statement}) is "
                    f"off by {worst:.1e}; pass a member of the set"
                )
        return checked
