"""The contract of a manifold: a frozen, stateless map from free coordinates to a constrained n×n matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from hyperconn.kernels.autocast import without_autocast
from hyperconn.manifolds.core.errors import shown
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.symmetries import Symmetry

# Far beyond any use (papers: 2 to 16); it turns a slip in a config into a message instead of an exhausted machine.
MAX_STREAMS = 1024

# Device pairs hold whole matrices in registers, which larger ones do not fit into.
MAX_FUSED_STREAMS = 16

M = TypeVar("M", bound="Manifold")


@dataclass(frozen=True)
class Manifold(ABC):
    """A set of n×n matrices together with a map that reaches it from unconstrained coordinates.

    Subclass as a frozen dataclass; options are further fields, refused in ``__post_init__`` when bad. A subclass
    says ``name``, ``exact``, ``num_coordinates``, ``invariants``, ``forward`` and ``identity``; the rest has
    defaults.

    Calling the manifold validates the coordinates and maps them: ``m(theta [..., P]) -> H [..., n, n]`` of the
    same dtype and device. bfloat16 and float16 coordinates are mapped in float32 and rounded once at the end;
    autocast is off inside. NaN in a token's coordinates makes that token's matrix NaN, inf makes it NaN or the
    limit at infinity; nothing hangs, and no other token is touched.

    Attributes:
        n: number of streams, the size of the matrix.
    """

    n: int

    name: ClassVar[str]
    source: ClassVar[str] = ""
    # Of the contract that the class was written for. It stays 1 here when API_VERSION rises: a class that says nothing
    # was written for the first.
    api_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool):
            raise TypeError(f"{type(self).__name__}: n must be an int, got {shown(self.n)}")
        if self.n < 1:
            raise ValueError(f"{type(self).__name__}: n must be at least 1 stream, got n={shown(self.n)}")
        if self.n > MAX_STREAMS:
            raise ValueError(
                f"{type(self).__name__}: n must be at most {MAX_STREAMS} streams, got n={shown(self.n)}; every token "
                "would carry an n×n matrix"
            )

    # ------------------------------------------------------------------ what every manifold says of itself

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether every invariant holds to ``tolerance(dtype)`` for any finite coordinates."""

    @property
    @abstractmethod
    def num_coordinates(self) -> int:
        """P, the length of ``theta``."""

    @property
    @abstractmethod
    def invariants(self) -> tuple[Invariant, ...]:
        """The conditions that define the set."""

    @abstractmethod
    def forward(self, theta: Tensor) -> Tensor:
        """The map itself: ``[..., P]`` float32 or float64 to ``[..., n, n]``."""

    @abstractmethod
    def identity(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """``[P]`` coordinates of the identity, or of the nearest point that the map reaches."""

    # ------------------------------------------------------------------ what has a sensible default

    @property
    def exact_invariants(self) -> tuple[Invariant, ...]:
        """The invariants that hold to ``tolerance(dtype)`` even where the manifold as a whole is not exact."""
        return self.invariants if self.exact else ()

    @property
    def contains_identity(self) -> bool:
        """Whether ``m(m.identity())`` is the identity to rounding."""
        return True

    @property
    def norm_bound(self) -> float | None:
        """An upper bound of ``‖H‖₂`` over the whole set, or None where there is none."""
        return None

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Changes of the coordinates with a known effect on H, for the laws to hold the map to."""
        return ()

    @property
    def coordinate_groups(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the coordinate groups, in order; a layer learns one scale for each."""
        return (("residual", self.num_coordinates),) if self.num_coordinates else ()

    @property
    def kernel(self) -> Any | None:
        """The Triton device pair of the map, or None where the torch map is all there is."""
        return None

    def initial(
        self,
        sharpness: float = 8.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """``[P]`` coordinates near the identity from which ``H`` can still learn.

        Where the identity lies at infinity (a softmax, say) ``sharpness`` is the gap between its logit and the
        others: the larger, the nearer to the identity and the smaller the first gradients. Elsewhere it is
        unused and the identity itself is returned.
        """
        return self.identity(dtype=dtype, device=device)

    def reference(self, theta: Tensor) -> Tensor:
        """The map as its paper writes it, for the laws to hold ``forward`` to: slow, plain, moderate coordinates only.

        Args:
            theta: ``[..., P]`` float64.

        Raises:
            NotImplementedError: ``forward`` is as plain as can be.
        """
        raise NotImplementedError(f"{self!r} has no second formula of its map")

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

    @classmethod
    def examples(cls: type[M]) -> tuple[M, ...]:
        """Instances that the laws run on; cover sizes and options here. By default six sizes, as far as they exist."""
        made, refused = [], []
        for n in (1, 2, 3, 4, 5, 8):
            try:
                made.append(cls(n=n))
            except ValueError as error:
                refused.append(error)
        if not made:
            raise refused[0]
        return tuple(made)

    def chosen_options(self):
        from hyperconn.manifolds.core.plain_data import chosen_options
        return chosen_options(self)

    # ------------------------------------------------------------------ what is the same for all

    def __call__(self, theta: Tensor) -> Tensor:
        """Map ``theta [..., P]`` to ``H [..., n, n]``.

        Raises:
            TypeError: theta is not a floating point tensor.
            ValueError: its last dimension is not ``num_coordinates``.
        """
        if not isinstance(theta, Tensor):
            raise TypeError(f"{self!r} maps a tensor of coordinates, got {type(theta).__name__}")
        _require_floating(self, "coordinates", theta)
        if theta.dim() == 0 or theta.shape[-1] != self.num_coordinates:
            raise ValueError(
                f"{self!r} takes coordinates of shape [..., {self.num_coordinates}], got {list(theta.shape)}; "
                f"its coordinate groups are {dict(self.coordinate_groups)}"
            )
        with without_autocast(theta.device):
            return self.forward(theta.to(working_dtype(theta.dtype))).to(theta.dtype)

    def violation(self, H: Tensor) -> Tensor:
        """Worst residual of ``H [..., n, n]`` over every invariant: ``[...]`` in float64, NaN where H is NaN."""
        self._require_matrix(H)
        worst = torch.zeros(H.shape[:-2], dtype=torch.float64, device=H.device)
        # An unconstrained set still has to say that a NaN is no member of it.
        worst = worst + torch.where(H.isfinite().all(-1).all(-1), 0.0, torch.nan)
        for invariant in self.invariants:
            worst = torch.maximum(worst, invariant.residual(H))
        return worst

    def _require_matrix(self, H: Tensor) -> Tensor:
        _require_floating(self, "matrices", H)
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


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.promote_types(dtype, torch.float32)


def _require_floating(manifold: Manifold, what: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{manifold!r} takes floating point {what}, got {value.dtype}; convert with .float() first")
