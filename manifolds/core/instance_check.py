"""What a part has to do before anybody builds on it: the mistakes that a first look at an instance shows.

Laws say how good a map is. Here it is asked whether it is one: whether its members are of the types that they have to
be, and whether ``forward``, called on two tokens, gives tensors of the right shape and dtype that autograd can follow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hyperconn.manifolds.core.errors import PartError, shown
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.map import Map, real_numbers

# What the code of a part may raise: anything but a request to stop.
_CRASHES: tuple[type[BaseException], ...] = (Exception, SystemExit)


@contextmanager
def sample_numbers() -> Iterator[None]:
    """Tensors made here are real, on the CPU and recorded by autograd, whatever mode is on; the seed stays."""
    with real_numbers(), torch.random.fork_rng(devices=()), torch.inference_mode(False), torch.enable_grad():
        yield


def ask(part: object, member: str, call: Callable[[], Any], *, may: tuple[type[BaseException], ...] = ()) -> Any:
    """What a member of a part gives; what its code raises, but for ``may``, becomes an error that names both."""
    passed_on: tuple[type[BaseException], ...] = (PartError, *may)
    try:
        return call()
    except passed_on:
        raise
    except _CRASHES as error:
        raise PartError(f"{called(part, member)} raised {type(error).__name__}: {error}") from error


def called(part: object, member: str) -> str:
    """What messages call a member: ``forward of Mine(n=4)``. The repr of the part is not asked, which may be broken."""
    n = getattr(part, "n", None)
    return f"{member} of {type(part).__qualname__}({f'n={n}' if isinstance(n, int) else ''})"


def require(part: object, member: str, held: bool, expected: str, got: object) -> None:
    """Raise unless ``held``, with what was expected of a member and what it is."""
    if not held:
        raise PartError(f"{called(part, member)} must be {expected}, got {shown(got)}")


def require_tensor(part: object, member: str, value: object, *shapes: Sequence[int], dtype: torch.dtype) -> None:
    """Raise unless a member gave a tensor of one of these shapes, and of the dtype of its argument."""
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    if not isinstance(value, Tensor):
        got = "None: is there a return?" if value is None else f"a {type(value).__name__}"
        raise PartError(f"{called(part, member)} must return a tensor of shape {wanted}, got {got}")
    if value.shape not in shapes:
        raise PartError(f"{called(part, member)} must return the shape {wanted}, got {list(value.shape)}")
    if value.dtype != dtype:
        raise PartError(
            f"{called(part, member)} must keep the dtype, {dtype}, got {value.dtype}: make constants like its argument"
        )


def require_value(part: Any) -> None:
    """Refuse a part that is no frozen, hashable value."""
    values = {field.name: getattr(part, field.name, dataclasses.MISSING) for field in dataclasses.fields(part)}
    for option, value in values.items():
        if value is dataclasses.MISSING:
            raise PartError(
                f"{called(part, option)} is not set: leave __init__ to @dataclass(frozen=True), and check options in "
                "__post_init__"
            )
        if isinstance(value, Tensor):
            raise PartError(f"{called(part, option)} is a tensor, but options are plain data: use a tuple")
        try:
            hash(value)
        except TypeError:
            raise PartError(
                f"{called(part, option)} must be hashable, for a part is a frozen value; got {shown(value)}: make it a "
                "tuple in the default, or in __post_init__ by object.__setattr__"
            ) from None
    require(part, "name", isinstance(part.name, str) and bool(part.name.strip()), "a string", part.name)


def require_map(part: Any) -> None:
    """Refuse a map whose sizes or values are none; ``forward`` is called on a few tokens.

    Raises:
        PartError: the first mistake that was found.
    """
    require_value(part)
    _require_size_check(part)
    P = ask(part, "num_coordinates", lambda: part.num_coordinates)
    require(part, "num_coordinates", type(P) is int and P >= 0, "an int, the length of theta", P)
    shape = ask(part, "value_shape", lambda: part.value_shape)
    sizes = isinstance(shape, tuple) and all(type(size) is int for size in shape)
    require(part, "value_shape", sizes, "a tuple of ints", shape)
    with sample_numbers():
        _require_forward(part, P, shape)


def _require_size_check(part: Any) -> None:
    """A ``__post_init__`` that forgets the base's takes any size."""
    if type(part).__post_init__ is Map.__post_init__:
        return
    try:
        dataclasses.replace(part, n=0)
    except _CRASHES:
        return
    raise PartError(f"{called(part, '__post_init__')} takes n=0: call super().__post_init__() first in it")


def _require_forward(part: Any, P: int, shape: tuple[int, ...]) -> None:
    # Zeros, where roots and quotients fail, and numbers in general position.
    theta = torch.stack([torch.zeros(P), torch.sin(torch.arange(1.0, P + 1))]).double()
    value = _forward(part, theta, shape)
    _forward(part, theta.float(), shape)
    for where, token in (("at theta = 0", value[0]), ("for numbers below 1", value[1])):
        if not bool(token.isfinite().all()):
            raise PartError(f"{called(part, 'forward')} must be finite {where}, got {shown(token.tolist())}")
    try:
        part.forward(theta.to("meta"))
    except _CRASHES as error:
        raise PartError(
            f"{called(part, 'forward')} needs the numbers of theta, on the meta device it raised "
            f"{type(error).__name__}: {error}; compute with torch on theta.device, without .item(), numpy and branches "
            "on values"
        ) from error
    theta.requires_grad_()
    again = ask(part, "forward", lambda: part.forward(theta))
    if not torch.equal(again.detach(), value):
        raise PartError(
            f"{called(part, 'forward')} gives two values for one theta: a map is a pure function, without random "
            "numbers and without a state"
        )
    alone = _forward(part, theta[1].detach(), shape)
    if not torch.allclose(alone, value[1], rtol=1e-6, atol=1e-9):
        raise PartError(
            f"{called(part, 'forward')} gives a token another value beside other tokens than alone: leading "
            "dimensions are batch, work on the last one (dim=-1)"
        )
    if P == 0 or not again.numel():
        return
    if not again.requires_grad:
        raise PartError(
            f"{called(part, 'forward')} cuts the graph, so that nothing could learn: compute with torch all the way, "
            "without .detach(), .item(), .tolist(), numpy or no_grad"
        )
    weights = torch.cos(torch.arange(1.0, again.numel() + 1)).double().reshape(again.shape)
    (gradient,) = ask(part, "the backward of forward", lambda: torch.autograd.grad((again * weights).sum(), theta))
    if not bool(gradient.isfinite().all()):
        raise PartError(
            f"{called(part, 'forward')} must have a finite gradient at theta = 0, got {shown(gradient[0].tolist())}: "
            "keep roots, norms and quotients away from 0"
        )


def _forward(part: Any, theta: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The value, without autograd, which would take a change in place for another mistake."""
    given = theta.clone()
    with torch.no_grad():
        value: Tensor = ask(part, "forward", lambda: part.forward(given))
    require_tensor(part, "forward", value, (*theta.shape[:-1], *shape), dtype=theta.dtype)
    if not torch.equal(given, theta):
        raise PartError(f"{called(part, 'forward')} changes theta in place: make a new tensor instead")
    return value


def require_manifold(part: Manifold) -> None:
    """Refuse a manifold that cannot be worked with, see ``require_map``.

    Raises:
        PartError: the first mistake that was found.
    """
    require_map(part)
    P = part.num_coordinates
    require(part, "value_shape", part.value_shape == (part.n, part.n), "(n, n)", part.value_shape)
    exact = ask(part, "exact", lambda: part.exact)
    require(part, "exact", type(exact) is bool, "True or False", exact)
    for member in ("invariants", "exact_invariants"):
        found = ask(part, member, functools.partial(getattr, part, member))
        held = isinstance(found, (tuple, list)) and all(isinstance(each, Invariant) for each in found)
        require(part, member, held, "a tuple of hyperconn.manifolds.invariants, as (invariants.row_sums,)", found)
    groups = ask(part, "coordinate_groups", lambda: part.coordinate_groups)
    pairs = isinstance(groups, tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in groups)
    held = pairs and all(isinstance(name, str) and type(size) is int for name, size in groups)
    require(part, "coordinate_groups", held, "a tuple of pairs (name, size)", groups)
    total = sum(size for _, size in groups)
    require(part, "coordinate_groups", total == P, f"of sizes that add up to num_coordinates, {P}", groups)
    tolerance = ask(part, "tolerance", lambda: part.tolerance(torch.float32))
    require(part, "tolerance", isinstance(tolerance, float), "a float", tolerance)
    with sample_numbers():
        for member, start in (("identity", part.identity), ("initial", part.initial)):
            point = ask(part, member, functools.partial(start, dtype=torch.float64))
            require_tensor(part, member, point, (P,), dtype=torch.float64)
            H = part(point)
            if not bool(H.isfinite().all()):
                raise PartError(f"{called(part, 'forward')} must be finite at {member}(), got {shown(H.tolist())}")
        refused = NotImplementedError, ValueError  # no inverse, or none of this matrix
        try:
            found = ask(part, "coordinates", lambda: part.coordinates(H), may=refused)
        except refused:
            return
        require_tensor(part, "coordinates", found, (P,), dtype=torch.float64)
