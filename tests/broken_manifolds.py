"""For each law, manifolds that break it and no other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import broken_gradients
from healthy_manifold import Circulant
from hyperconn.manifolds import Invariant, Manifold, Stiefel, Symmetry, invariants

# ---------------------------------------------------------------------------------------------------- the interface


class _Plain(Circulant):
    """Without the second opinions on the map, which would all see that it is wrong."""

    symmetries = ()

    def reference(self, theta):
        raise NotImplementedError

    def coordinates(self, H):
        raise NotImplementedError


class FlattensBatches(_Plain):
    breaks = "shape"

    def forward(self, theta):
        return super().forward(theta.reshape(-1, self.n))


class WidensHalfPrecision(Circulant):
    breaks = "dtype"

    def __call__(self, theta):
        H = super().__call__(theta)
        return H.float() if H.dtype == torch.float16 else H


class IdentityInDefaultDtype(Circulant):
    breaks = "dtype"

    def identity(self, *, dtype=None, device=None):
        return super().identity(device=device)


class BuildsOnTheCPU(Circulant):
    breaks = "device"

    def forward(self, theta):
        return super().forward(theta) + torch.zeros(self.n, self.n, dtype=theta.dtype)


class SeesTheBatchSize(_Plain):
    breaks = "batched"
    also = ("extremes",)

    def forward(self, theta):
        return super().forward(theta * (1 + 0.01 * theta[..., 0].numel()))


class Jitters(Circulant):
    breaks = "pure"
    calls = itertools.count()

    def forward(self, theta):
        return super().forward(theta) * (1 + next(self.calls) % 2 * torch.finfo(theta.dtype).eps)


class RollsDice(Circulant):
    breaks = "pure"

    def forward(self, theta):
        torch.rand(())
        return super().forward(theta)


class _UsesUpWhatItSaved(torch.autograd.Function):
    """The identity; its backward is right, once."""

    @staticmethod
    def forward(ctx, theta):
        ctx.factor = torch.ones_like(theta)
        return theta.clone()

    @staticmethod
    def backward(ctx, cotangent):
        gradient = ctx.factor * cotangent
        if not torch.is_grad_enabled():
            ctx.factor.mul_(0.5)
        return gradient


class GoesBackOnce(Circulant):
    breaks = "pure"

    def forward(self, theta):
        return super().forward(_UsesUpWhatItSaved.apply(theta))


class LetsAutocastIn(Circulant):
    breaks = "autocast"

    def __call__(self, theta):
        super().__call__(theta)
        return self.forward(theta.to(torch.promote_types(theta.dtype, torch.float32))).to(theta.dtype)

    def forward(self, theta):
        shifts = super().forward(1e3 * torch.eye(self.n, dtype=theta.dtype, device=theta.device))
        return (torch.softmax(theta, -1) @ shifts.flatten(1)).unflatten(-1, (self.n, self.n))


class IsAnotherInAGraph(Circulant):
    breaks = "compiled"

    def forward(self, theta):
        return super().forward(2 * theta if torch.compiler.is_compiling() else theta)


# ------------------------------------------------------------------------------------------------------- wrong input


class TakesIntegers(Circulant):
    breaks = "wrong_inputs"

    def __call__(self, theta):
        if isinstance(theta, Tensor) and theta.dtype == torch.int64:
            theta = theta.float()
        return super().__call__(theta)


class CutsToWidth(Circulant):
    breaks = "wrong_inputs"

    def __call__(self, theta):
        wide = isinstance(theta, Tensor) and theta.dim() > 0 and theta.shape[-1] > self.n
        return super().__call__(theta[..., : self.n] if wide else theta)


class HidesNaN(Circulant):
    breaks = "not_a_number"

    def forward(self, theta):
        return super().forward(theta.nan_to_num(nan=0.0))


class SpreadsNaN(Circulant):
    breaks = "not_a_number"
    also = ("extremes",)

    def forward(self, theta):
        return super().forward(theta + 0 * theta.reshape(-1, self.n).sum(0))


# ------------------------------------------------------------------------------------------------------- membership


class LeavesTheSetFarOut(Circulant):
    breaks = "membership"

    def forward(self, theta):
        far = (theta.amax(-1) - 40).abs() < 25
        return super().forward(theta) * torch.where(far, 0.999, 1.0)[..., None, None].to(theta.dtype)


class LeavesTheSetAtTheEnd(Circulant):
    breaks = "extremes"

    def forward(self, theta):
        far = theta.abs().amax(-1) > 5e4
        return super().forward(theta) * torch.where(far, 0.5, 1.0)[..., None, None].to(theta.dtype)


class PassesOverACoordinate(_Plain):
    breaks = "first_derivative"

    def forward(self, theta):
        return super().forward(torch.cat([theta[..., :-1], 0 * theta[..., -1:] - 64], -1))


@dataclass(frozen=True)
class WorsensWithIterations(_Plain):
    iterations: int = 5
    breaks = "iterations"
    exact = False
    exact_invariants = (invariants.row_sums, invariants.nonnegative)
    contains_identity = False
    norm_bound = None

    def forward(self, theta):
        # Rows lean towards the first stream, whose column sum grows.
        lean = 1e-3 * self.iterations
        first = torch.nn.functional.one_hot(torch.zeros_like(theta, dtype=torch.int64), self.n).to(theta.dtype)
        return (1 - lean) * super().forward(theta) + lean * first


class CallsSymmetryClosed(Manifold):
    """Symmetric contractions; the symmetry of their products is promised, but not kept."""

    breaks = "products"
    also = ("extremes",)
    name = "symmetric"
    exact = True

    @property
    def num_coordinates(self):
        return self.n**2

    invariants = (replace(invariants.symmetric, closed_under_products=True), invariants.non_expansive)
    contains_identity = False

    def forward(self, theta):
        S = theta.unflatten(-1, (self.n, self.n))
        S = S + S.mT
        size = (1 + S.square().sum((-2, -1), keepdim=True)).sqrt()
        return (torch.eye(self.n, dtype=theta.dtype, device=theta.device) + S / size) / 2

    def identity_coordinates(self):
        return 1e3 * torch.eye(self.n).flatten()


class PromisesASmallerNorm(Circulant):
    breaks = "norm_bound"
    norm_bound = 0.9


class SeesNoViolation(Circulant):
    breaks = "perturbation"

    def violation(self, H):
        return 0 * super().violation(H)


class IgnoresSigns(Circulant):
    breaks = "perturbation"

    def violation(self, H):
        self._require_matrix(H)
        return torch.maximum(invariants.row_sums.residual(H), invariants.column_sums.residual(H))


class _HalfMeasured(Invariant):
    """Passes for the library's own, and is half as strict."""

    def __eq__(self, other):
        return isinstance(other, Invariant) and other.name == self.name

    def __hash__(self):
        return hash(self.name)

    def residual(self, H):
        return super().residual(H) / 2


class MeasuresByHalves(Circulant):
    breaks = "measures"

    @property
    def invariants(self):
        own = super().invariants
        half = _HalfMeasured(**vars(invariants.column_sums))
        return tuple(half if invariant == half else invariant for invariant in own)


# ------------------------------------------------------------------------------------------------------------- points


class MissesTheIdentity(Circulant):
    breaks = "identity"

    def identity_coordinates(self):
        return [0.0] * self.n


class DeniesTheIdentity(Circulant):
    breaks = "identity"
    contains_identity = False


class StartsSaturated(Circulant):
    breaks = "initial"

    def initial_coordinates(self, sharpness):
        return super().initial_coordinates(1e4)


class StartsFurtherTheSharper(Circulant):
    breaks = "initial"

    def identity_coordinates(self):
        return super().initial_coordinates(64.0)

    def initial_coordinates(self, sharpness):
        return super().initial_coordinates(8.0 / sharpness)


class InvertsTheTranspose(Circulant):
    breaks = "round_trip"

    def coordinates(self, H):
        return super().coordinates(H.mT)


# ------------------------------------------------------------------------------------------------------------ objects


class ForgivesEverything(Circulant):
    breaks = "tolerance"

    def tolerance(self, dtype):
        return 1.0


class MiscountsItsGroups(Circulant):
    breaks = "declarations"

    @property
    def coordinate_groups(self):
        return (("residual", self.n + 1),)


class IsExactAboutNothing(Circulant):
    breaks = "declarations"
    exact_invariants = ()


class BoundsItsNormLoosely(Circulant):
    breaks = "declarations"
    norm_bound = 2.0


class ComparesByIdentity(Circulant):
    breaks = "value_semantics"
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Thaws(Circulant):
    breaks = "value_semantics"
    __setattr__ = object.__setattr__


# ---------------------------------------------------------------------------------------------------------- relations


class CallsRotationsConvex(Stiefel):
    breaks = "mixtures"
    invariants = (replace(invariants.orthogonal, closed_under_mixtures=True), invariants.spectral_norm)


_NEIGHBOURS = Invariant(
    "neighbours", "H[0, 1] = H[1, 2]", lambda H: (H[..., 0, 1] - H[..., 1, 2]).abs(), closed_under_relabelling=True
)


class CallsTheOrderIndifferent(Circulant):
    """That neighbours get equal weights is true of shifts, until the streams are numbered in another order."""

    breaks = "relabelling"
    size = 4

    @property
    def invariants(self):
        return (*super().invariants, _NEIGHBOURS)


class HasAnotherFormula(Circulant):
    breaks = "reference"

    def reference(self, theta):
        return super().reference(theta).mT


class IsLessSymmetricThanItSays(Circulant):
    breaks = "symmetries"
    symmetries = (Symmetry("negation", "m(−θ) = m(θ)ᵀ", lambda theta, draw: -theta, lambda H, draw: H.mT),)


class ForgetsWhereItWas(Circulant):
    """Coordinates of members are right, those of what is a member up to rounding are another member's."""

    breaks = "round_trip"

    def coordinates(self, H):
        noisy = self.violation(H) > 8 * self.tolerance(H.dtype)
        return torch.where(noisy[..., None], super().coordinates(H.mT), super().coordinates(H))


BROKEN: tuple[Manifold, ...] = tuple(
    cls(n=getattr(cls, "size", 3))
    for cls in [*globals().values(), *vars(broken_gradients).values()]
    if isinstance(cls, type) and "breaks" in vars(cls)
)
