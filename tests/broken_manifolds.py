"""For each law, manifolds that break it and no other: the healthy one with something changed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import broken_gradients
from healthy_manifold import Circulant
from hyperconn.manifolds import Invariant, Manifold, Stiefel, Symmetry, invariants


def refuse(self, argument):
    raise NotImplementedError


class _Plain(Circulant):
    """Without the second opinions on the map, which would all see that it is wrong."""

    symmetries = ()
    reference = coordinates = refuse


class WidensHalfPrecision(Circulant):
    breaks = "dtype"

    def __call__(self, theta):
        H = super().__call__(theta)
        return H.float() if H.dtype == torch.float16 else H


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
    num_coordinates = property(lambda self: self.n**2)
    invariants = (replace(invariants.symmetric, closed_under_products=True), invariants.non_expansive)
    contains_identity = False

    def forward(self, theta):
        S = theta.unflatten(-1, (self.n, self.n))
        S = S + S.mT
        size = (1 + S.square().sum((-2, -1), keepdim=True)).sqrt()
        return (torch.eye(self.n, dtype=theta.dtype, device=theta.device) + S / size) / 2

    def identity_coordinates(self):
        return 1e3 * torch.eye(self.n).flatten()


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


class StartsFurtherTheSharper(Circulant):
    breaks = "initial"

    def identity_coordinates(self):
        return super().initial_coordinates(64.0)

    def initial_coordinates(self, sharpness):
        return super().initial_coordinates(8.0 / sharpness)


class ForgetsWhereItWas(Circulant):
    """Coordinates of members are right, those of what is a member up to rounding are another member's."""

    breaks = "round_trip"

    def coordinates(self, H):
        noisy = self.violation(H) > 8 * self.tolerance(H.dtype)
        return torch.where(noisy[..., None], super().coordinates(H.mT), super().coordinates(H))


_NEIGHBOURS = Invariant(
    "neighbours", "H[0, 1] = H[1, 2]", lambda H: (H[..., 0, 1] - H[..., 1, 2]).abs(), closed_under_relabelling=True
)
_NEGATION = Symmetry("negation", "m(−θ) = m(θ)ᵀ", lambda theta, draw: -theta, lambda H, draw: H.mT)
_ROTATIONS = (replace(invariants.orthogonal, closed_under_mixtures=True), invariants.spectral_norm)
_CALLS = itertools.count()
_call, _forward = Circulant.__call__, Circulant.forward


def made(law: str, name: str, base: type[Manifold] = Circulant, n: int = 3, **members: Any) -> Manifold:
    """A subclass of ``base`` that breaks a law by these members, at n streams; pickle finds the class here."""
    globals()[name] = type(name, (base,), {"breaks": law, "__module__": __name__, **members})
    return globals()[name](n=n)


MADE = (
    made("shape", "FlattensBatches", _Plain, __call__=lambda m, theta: _call(m, theta).reshape(-1, m.n, m.n)),
    made(
        "dtype", "IdentityInDefaultDtype", identity=lambda m, **kind: Circulant.identity(m, device=kind.get("device"))
    ),
    made("device", "BuildsOnTheCPU", forward=lambda m, theta: _forward(m, theta) + torch.zeros(3, 3).to(theta.dtype)),
    made(
        "batched",
        "SeesTheBatchSize",
        _Plain,
        also=("extremes",),
        forward=lambda m, theta: _forward(m, theta * (1 + 0.01 * theta[..., 0].numel())),
    ),
    made(
        "pure",
        "Jitters",
        forward=lambda m, theta: _forward(m, theta) * (1 + next(_CALLS) % 2 * torch.finfo(theta.dtype).eps),
    ),
    made(
        "compiled",
        "IsAnotherInAGraph",
        forward=lambda m, theta: _forward(m, 2 * theta if torch.compiler.is_compiling() else theta),
    ),
    made("not_a_number", "HidesNaN", forward=lambda m, theta: _forward(m, theta.nan_to_num(nan=0.0))),
    made(
        "not_a_number",
        "SpreadsNaN",
        also=("extremes",),
        forward=lambda m, theta: _forward(m, theta + 0 * theta.reshape(-1, m.n).sum(0)),
    ),
    made(
        "first_derivative",
        "PassesOverACoordinate",
        _Plain,
        forward=lambda m, theta: _forward(m, torch.cat([theta[..., :-1], 0 * theta[..., -1:] - 64], -1)),
    ),
    made("norm_bound", "PromisesASmallerNorm", norm_bound=0.9),
    made("perturbation", "SeesNoViolation", violation=lambda m, H: 0 * Circulant.violation(m, H)),
    made("identity", "MissesTheIdentity", identity_coordinates=lambda m: [0.0] * m.n),
    made("identity", "DeniesTheIdentity", contains_identity=False),
    made("initial", "StartsSaturated", initial_coordinates=lambda m, sharpness: Circulant.initial_coordinates(m, 1e4)),
    made("round_trip", "InvertsTheTranspose", coordinates=lambda m, H: Circulant.coordinates(m, H.mT)),
    made("tolerance", "ForgivesEverything", tolerance=lambda m, dtype: 1.0),
    made("declarations", "MiscountsItsGroups", coordinate_groups=property(lambda m: (("residual", m.n + 1),))),
    made("declarations", "IsExactAboutNothing", exact_invariants=()),
    made("declarations", "BoundsItsNormLoosely", norm_bound=2.0),
    made("value_semantics", "ComparesByIdentity", __eq__=object.__eq__, __hash__=object.__hash__),
    made("value_semantics", "Thaws", __setattr__=object.__setattr__),
    made("mixtures", "CallsRotationsConvex", Stiefel, invariants=_ROTATIONS),
    # That neighbours get equal weights is true of shifts, until the streams are numbered in another order.
    made("relabelling", "CallsTheOrderIndifferent", n=4, invariants=(*Circulant.invariants, _NEIGHBOURS)),
    made("reference", "HasAnotherFormula", reference=lambda m, theta: Circulant.reference(m, theta).mT),
    made("symmetries", "IsLessSymmetricThanItSays", symmetries=(_NEGATION,)),
)

BROKEN: tuple[Manifold, ...] = MADE + tuple(
    cls(n=3)
    for cls in [*globals().values(), *vars(broken_gradients).values()]
    if isinstance(cls, type) and "breaks" in vars(cls) and cls not in map(type, MADE)
)
