"""What the laws run on: the instances of a class that somebody registered, or wants to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperconn.gates import GATES
from hyperconn.manifolds.core.class_check import require_contract
from hyperconn.manifolds.core.errors import UnknownNameError
from hyperconn.manifolds.core.map import Map
from hyperconn.manifolds.registry import MANIFOLDS, Registry
from hyperconn.predictors import PREDICTORS, Flat, Layout, Predictor
from hyperconn.testing.expressions import expression
from hyperconn.testing.law import CRASHES

GUIDE = "docs/add-a-manifold.md says what a class has to bring"
KINDS: tuple[Registry[Any], ...] = (MANIFOLDS, GATES, PREDICTORS)


class ContractError(TypeError):
    """A class is no part that laws could be checked on; the message says what is missing."""


@dataclass(frozen=True)
class PredictorCase(Map):
    """A predictor in a layout, with parameters in general position, as a map of a token's streams to its logits.

    Attributes:
        predictor: the part.
        channels: C.
        sizes: of the groups of logits.
        norm_eps: as in a config.
        outside: whether norm_eps is added to the root.
    """

    predictor: Predictor = field(default_factory=Flat)
    channels: int = 3
    sizes: tuple[int, ...] = (2, 2, 4)
    norm_eps: float = 1e-6
    outside: bool = False

    name = "predictor"

    @property
    def layout(self) -> Layout:
        """What the predictor is given."""
        return Layout(self.n, self.channels, self.sizes, self.norm_eps, "outside" if self.outside else "inside")

    @property
    def num_coordinates(self) -> int:
        return self.n * self.channels

    @property
    def value_shape(self) -> tuple[int, ...]:
        return (self.layout.total,)

    def parameters(self, like: Tensor) -> dict[str, Tensor]:
        """Parameters in general position, the same for every dtype."""
        found = {}
        for k, (name, shape) in enumerate(sorted(self.predictor.parameters(self.layout).items())):
            # No generator, which a compiled graph could not hold.
            numbers = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64, device=like.device)
            numbers = 1.5 * torch.sin(numbers * (k + 1.7) + k).reshape(shape)
            found[name] = (numbers / shape[-1] ** 0.5 if len(shape) > 1 else numbers).to(like.dtype)
        return found

    def forward(self, theta: Tensor) -> Tensor:
        return self.logits(theta, self.parameters(theta))

    def logits(self, theta: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """``[..., n·C]`` streams to ``[..., P_total]`` logits, as a layer runs it."""
        x = theta.reshape(-1, self.n, self.channels)
        W = self.predictor.projection(parameters, self.layout)
        raw = None if W is None else torch.cat([x.flatten(1) @ W.mT, x.flatten(1).square().sum(-1, keepdim=True)], -1)
        found = self.predictor.logits(x, raw, parameters, self.layout)
        found = found.expand(x.shape[0], -1) if found.dim() == 1 else found
        return found.reshape(*theta.shape[:-1], self.layout.total)


def named(name: str) -> type[Any]:
    """The registered class of that name: a manifold, if there is none a gate, then a predictor.

    Raises:
        UnknownNameError: it is nobody's name; with the manifolds that are nearest.
    """
    unknown: list[UnknownNameError] = []
    for registry in KINDS:
        try:
            return registry.get(name)
        except UnknownNameError as error:
            unknown.append(error)
    raise unknown[0]


def choose(cls: object, sizes: Sequence[int] | None = None) -> tuple[Map, ...]:
    """The instances that the laws run on.

    Args:
        cls: a subclass of Manifold, Gate or Predictor.
        sizes: numbers of streams; None takes what ``cls.examples()`` returns. With sizes it is the examples of these
            sizes and the class with its default options, as far as it takes them. Predictors have no size.

    Raises:
        ContractError: what is there is no such class, or nothing is left.
    """
    registry = next((r for r in KINDS if isinstance(cls, type) and issubclass(cls, r.base)), MANIFOLDS)
    try:
        require_contract(cls, registry.base, "hyperconn.testing")
    except (TypeError, ValueError) as error:
        raise ContractError(f"{error}; {GUIDE}") from error
    assert isinstance(cls, type)
    examples = _examples(cls)
    for example in examples:
        _require_working(registry, example)
    if registry is PREDICTORS:
        return tuple(case for example in examples for case in predictor_cases(example))
    if sizes is None:
        return examples
    made, refused = [], []
    for n in dict.fromkeys(sizes):
        try:
            made.append(cls(n=n))
        except CRASHES as error:  # a size that it does not take, or an option without a default
            refused.append(f"n={n} is refused: {type(error).__name__}: {error}")
    chosen = {expression(each): each for each in (*made, *(each for each in examples if each.n in sizes))}
    if not chosen:
        raise ContractError(f"{cls.__name__} takes none of these sizes: {'; '.join(refused)}")
    for remark in refused:
        warnings.warn(f"{cls.__name__}: {remark}", stacklevel=2)
    return tuple(sorted(chosen.values(), key=lambda each: each.n))


def _examples(cls: Any) -> tuple[Any, ...]:
    try:
        examples = tuple(cls.examples())
    except CRASHES as error:
        raise ContractError(
            f"{cls.__name__}.examples() raised {type(error).__name__}: {error}; override it to return the instances "
            f"that the laws run on; {GUIDE}"
        ) from error
    if not examples or not all(isinstance(example, cls) for example in examples):
        raise ContractError(f"{cls.__name__}.examples() must return instances of the class, got {examples!r}")
    if issubclass(cls, Map) and not all(hasattr(example, "n") for example in examples):
        raise ContractError(f"a {cls.__name__} has no n: its __init__ does not set the field; {GUIDE}")
    return examples


def _require_working(registry: Registry[Any], part: Any) -> None:
    """First, because every law would fail on what is no map at all, each in its own words."""
    try:
        registry.check(part)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{error}; {GUIDE}") from error


def predictor_cases(predictor: Predictor) -> tuple[PredictorCase, ...]:
    """Layouts of two to four groups, with an eps of either kind and none; those that the predictor refuses left out.

    Raises:
        ContractError: it refuses all, also that of a read gate with two logits for every channel.
    """
    usual = (
        PredictorCase(2, predictor),
        PredictorCase(3, predictor, 4, (3, 9, 3, 6), 1e-3, True),
        PredictorCase(1, predictor, 5, (1, 1), 1e-5),
        PredictorCase(4, predictor, 4, (4, 4, 16), 0.0),
    )
    channelwise = (PredictorCase(2, predictor, 3, (12, 2)), PredictorCase(3, predictor, 4, (24, 3), 0.0))
    taken = tuple(filter(_is_taken, usual)) or tuple(filter(_is_taken, channelwise))
    if not taken:
        raise ContractError(f"{predictor!r} refuses every layout: check a PredictorCase of your own with check_law")
    return taken


def _is_taken(case: PredictorCase) -> bool:
    try:
        case.predictor.parameters(case.layout)
    except ValueError:
        return False
    except CRASHES:  # a bug is for the laws to report
        return True
    return True
